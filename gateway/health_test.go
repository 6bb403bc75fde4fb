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
