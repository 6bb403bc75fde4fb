package audit_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/policy"
)

// BenchmarkAppend writes allowed requests of ordinary size with their Input,
// while Run syncs. Run it with -cpu 1 for the records that one core writes.
func BenchmarkAppend(b *testing.B) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	input, err := json.Marshal(policy.Input{
		Time: at, Action: policy.ActionRequest, App: policy.AppRef{Name: "crm", Protocol: "http"},
		Device:   policy.Device{ID: "dev-0123456789abcdef", Name: "laptop-17", Serial: "PF3XK1", OS: "linux", KeyTier: "software", EnrolledAt: at},
		Subject:  &policy.Subject{Issuer: "https://idp.example.com", ID: "4242", Name: "Åsa Lind", Email: "asa@example.com", Groups: []string{"sales", "all"}, AuthenticatedAt: at},
		Session:  &policy.Session{ID: "ses-0123456789abcdef", OSUser: "1000:asa", StartedAt: at, ExpiresAt: at},
		Posture:  policy.Posture{ReceivedAt: &at, Signals: map[string]policy.Signal{"disk_encryption": {State: "pass"}, "host_firewall": {State: "pass", Value: "ufw: on"}}},
		Location: policy.Location{Address: "192.0.2.17", Country: "SE"},
		Request:  &policy.Request{Method: "GET", Host: "crm.example.com", Path: "/customers/4711"},
	})
	if err != nil {
		b.Fatal(err)
	}
	l, err := audit.Open(audit.Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r := audit.Record{
				Kind: audit.KindDecision, Subject: "https://idp.example.com#4242", Device: "dev-0123456789abcdef",
				Session: "ses-0123456789abcdef", Flow: "flw-0123456789abcdef", Method: "GET", Host: "crm.example.com",
				Path: "/customers/4711", Remote: "192.0.2.17", Input: input, InputCompact: true,
			}
			r.SetDecision(policy.Decision{ID: "0123456789abcdef", Allow: true, Reason: policy.ReasonAllowed, Message: "Access is allowed.", App: "crm", Rule: "crm.access[0]", Revision: "sha256-0123456789abcdef", Time: at})
			if err := l.Append(&r); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	b.StopTimer()
	b.Cleanup(func() {
		if err := <-done; err != nil {
			b.Error(err)
		}
		_ = l.Close()
	})
}
