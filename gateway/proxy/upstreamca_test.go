package proxy_test

import (
	"bytes"
	"encoding/pem"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/proxy"
)

// said keeps what a gateway logs.
type said struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(b)
}

func (s *said) take() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.buf.Reset()
	return s.buf.String()
}

// An app's CA is what its file says: with the next publish at once, and without
// one soon. What was connected by the one before is used for nothing new, and
// without a CA the app is not asked.
func TestUpstreamCAIsReplaced(t *testing.T) {
	var asked atomic.Int32
	srv := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer srv.Close()
	ca := caFile(t, srv)
	own, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	issue, _ := newCA(t)
	c, err := issue([]string{"crm.internal"})
	if err != nil {
		t.Fatal(err)
	}
	other := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})
	apps := []string{strings.Replace(crmYAML, "{{crm}}", srv.URL, 1) + "upstream_ca_file: " + ca + "\n"}

	var logged said
	w := newWorld(t, apps, nil, func(cfg *proxy.Config) { cfg.Log = slog.New(slog.NewTextHandler(&logged, nil)) })
	device := w.client(false)
	status := func() int {
		before := asked.Load()
		res, _ := get(t, device, "https://crm.test/")
		if reached := asked.Load() != before; reached != (res.StatusCode == http.StatusOK) {
			t.Fatalf("answered %d, and the app was asked: %v", res.StatusCode, reached)
		}
		return res.StatusCode
	}
	if got := status(); got != http.StatusOK {
		t.Fatalf("at first: %d", got)
	}
	type step struct {
		name string
		pem  []byte // nil: no file
		want int
		says string
	}
	steps := []step{
		{"another's", other, http.StatusBadGateway, ""},
		{"its own", own, http.StatusOK, ""},
		{"nothing in it", []byte{}, http.StatusBadGateway, "app crm: reading upstream_ca_file: " + ca + " holds no certificate"},
		{"its own again", own, http.StatusOK, ""},
		{"garbage", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), http.StatusBadGateway, ca + " holds no certificate"},
		{"no file", nil, http.StatusBadGateway, "app crm: reading upstream_ca_file: open " + ca + ": no such file"},
		{"a file again", own, http.StatusOK, ""},
	}
	for _, publish := range []bool{true, false} {
		if !publish { // each waits for the next look
			steps = append(steps[:2:2], steps[5:]...)
		}
		for _, step := range steps {
			logged.take()
			if step.pem == nil {
				err = os.Remove(ca)
			} else {
				err = os.WriteFile(ca, step.pem, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			if publish {
				w.publish(apps, nil)
			}
			got := status()
			for deadline := time.Now().Add(10 * time.Second); !publish && got != step.want && time.Now().Before(deadline); got = status() {
				time.Sleep(20 * time.Millisecond)
			}
			if got != step.want {
				t.Errorf("%s, published %v: answered %d, want %d", step.name, publish, got, step.want)
			}
			if text := logged.take(); !strings.Contains(text, step.says) {
				t.Errorf("%s: the log says %s", step.name, text)
			}
		}
	}
}
