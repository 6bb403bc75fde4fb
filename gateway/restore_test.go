package gateway_test

import (
	"context"
	"encoding/base64"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/curve25519"

	"github.com/portvakt/portvakt/gateway"
	"github.com/portvakt/portvakt/gateway/store"
)

// One device's registration that cannot be put in force, here because its
// tunnel key is the gateway's own, must not keep everybody out after a restart.
func TestABadRegistrationDoesNotStopTheStart(t *testing.T) {
	cfg, health := runnable(t)
	dir := filepath.Dir(cfg.DataDir)
	runUntilUp(t, cfg, health) // makes the keys

	keys := filepath.Join(dir, "data", "keys")
	private := readKey(t, filepath.Join(keys, "tunnel.key"))
	public, err := curve25519.X25519(private[:], curve25519.Basepoint)
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.Context(), store.Options{
		Path: filepath.Join(dir, "data", "gateway.db"), IPv4: netip.MustParsePrefix(cfg.Tunnel.IPv4), IPv6: netip.MustParsePrefix(cfg.Tunnel.IPv6),
		SealKey: readKey(t, filepath.Join(keys, "seal.key")),
	})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if err := st.CreateInvite(t.Context(), store.Invite{SecretHash: [32]byte{1}, CreatedBy: "test", CreatedAt: now, ExpiresAt: now.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	d, err := st.RedeemInvite(t.Context(), store.Redeem{SecretHash: [32]byte{1}, Now: now, Device: store.Device{ID: "dev-a", Name: "a", KeyHash: [32]byte{2}, PublicKey: []byte{1}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.PutRegistration(t.Context(), store.Registration{DeviceID: d.ID, TunnelKey: [32]byte(public), BootID: "b", CreatedAt: now, ExpiresAt: now.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	runUntilUp(t, cfg, health)
}

// runnable is a configuration that a gateway runs with, and where its health is.
func runnable(t *testing.T) (cfg *gateway.Config, health string) {
	t.Helper()
	dir := t.TempDir()
	policies := filepath.Join(dir, "apps")
	if err := os.Mkdir(policies, 0o700); err != nil {
		t.Fatal(err)
	}
	health = freePort(t)
	path := filepath.Join(dir, "gateway.yaml")
	text := strings.ReplaceAll(good, "  directory: $DIR", "  directory: "+policies)
	text = strings.ReplaceAll(text, "$DIR", dir)
	text = strings.Replace(text, "https://login.example.com", "http://127.0.0.1:9", 1)
	text = strings.Replace(text, "public:\n", "public:\n  listen: 127.0.0.1:0\n", 1)
	text += "tunnel:\n  listen: 127.0.0.1:0\n  endpoints: [\"127.0.0.1:1\"]\nhealth:\n  listen: " + health + "\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := gateway.LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	return cfg, health
}

// runUntilUp starts a gateway, waits until it answers and stops it.
func runUntilUp(t *testing.T, cfg *gateway.Config, health string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	client := http.Client{Timeout: time.Second}
	defer client.CloseIdleConnections()
	done := make(chan error, 1)
	go func() { done <- gateway.Run(ctx, cfg, nil) }()
	for deadline := time.Now().Add(10 * time.Second); ; {
		select {
		case err := <-done:
			t.Fatalf("the gateway gave up: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		if resp, err := client.Get("http://" + health + "/healthz"); err == nil {
			resp.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the gateway does not come up")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func readKey(t *testing.T, path string) [32]byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil || len(b) != 32 {
		t.Fatal(b, err)
	}
	return [32]byte(b)
}
