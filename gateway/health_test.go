package gateway_test

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway"
)

// Monitors look at /healthz and /metrics: a policy that was refused and an
// identity provider that is away are there, and neither makes the gateway unfit.
func TestHealthSaysWhatIsBrokenOutside(t *testing.T) {
	cfg, health := runnable(t)
	if err := os.WriteFile(filepath.Join(cfg.Policy.Directory, "crm.yaml"), []byte("nam: crm\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Audit.Witness = gateway.WitnessConfig{URL: "https://127.0.0.1:9", Key: "w.example.com+5158c9ef+BAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g"}
	log := filepath.Join(cfg.DataDir, "audit")
	if err := os.MkdirAll(log, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(log, "clock.json"), []byte(`{"believed":"2020-01-01T00:00:00Z"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- gateway.Run(ctx, cfg, nil) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	client := http.Client{Timeout: time.Second}
	defer client.CloseIdleConnections()
	for path, want := range map[string][]string{
		"/healthz": {`"ok":true`, `"policy":"the newest revision was refused: `, "nam: unknown key", `"identity":"http://127.0.0.1:9 does not answer; nobody can log in: `, `"audit_witness":"asking the witness: `, `"audit_clock":"the machine's clock is `},
		"/readyz":  {`"ok":false`, `"policy":"no revision is in force; everything is refused; the newest revision was refused: `, `"identity":"http://127.0.0.1:9 does not answer`},
		"/metrics": {"\nportvakt_policy_refused 1\n", "\nportvakt_audit_cosigned_records 0\n", "\nportvakt_audit_cosigned_timestamp_seconds 0\n"},
	} {
		var body []byte
		var lacks string
		for range 500 {
			lacks = "an answer"
			if resp, err := client.Get("http://" + health + path); err == nil {
				body, _ = io.ReadAll(resp.Body)
				resp.Body.Close()
				lacks = ""
			}
			for _, w := range want {
				if lacks == "" && !strings.Contains(string(body), w) {
					lacks = w
				}
			}
			if lacks == "" {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if lacks != "" {
			t.Errorf("%s lacks %s:\n%s", path, lacks, body)
		}
	}
}

// A log whose checkpoint is gone is written on and not signed, and monitors see
// it while the gateway serves.
func TestHealthSaysThatTheCheckpointIsGone(t *testing.T) {
	cfg, health := runnable(t)
	runUntilUp(t, cfg, health)
	dir := filepath.Join(cfg.DataDir, "audit")
	if err := os.Remove(filepath.Join(dir, "tree", "checkpoint")); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, "audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- gateway.Run(ctx, cfg, nil) }()
	client := http.Client{Timeout: time.Second}
	defer client.CloseIdleConnections()
	var body []byte
	for range 1000 {
		if resp, err := client.Get("http://" + health + "/healthz"); err == nil {
			body, _ = io.ReadAll(resp.Body)
			resp.Body.Close()
			if strings.Contains(string(body), "checkpoint is missing") {
				break
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, want := range []string{`"ok":true`, `"audit":"ok"`, `"audit_signed":"` + filepath.Join(dir, "tree", "checkpoint") + ` is missing, and `} {
		if !strings.Contains(string(body), want) {
			t.Errorf("/healthz lacks %s:\n%s", want, body)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	after, err := os.ReadFile(filepath.Join(dir, "audit.jsonl"))
	if err != nil || !strings.HasPrefix(string(after), string(before)) || !strings.Contains(string(after[len(before):]), `"kind":"start"`) {
		t.Errorf("the log is not written on: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "tree", "checkpoint")); !os.IsNotExist(err) {
		t.Errorf("a checkpoint is there again: %v", err)
	}
}
