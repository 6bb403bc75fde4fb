package audit_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/people"
	"github.com/portvakt/portvakt/policy"
)

// BenchmarkAppend writes allowed requests of ordinary size with their Input,
// their personal data sealed, while Run syncs. Run it with -cpu 1 for the records that one core writes.
func BenchmarkAppend(b *testing.B) {
	one := request(b)
	l := running(b)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r := one()
			if err := l.Append(&r); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkStrict measures what strict durability adds to a request: the time
// of Append and of AppendDurable on a real file, over one connection and over
// 64 at once, one after the other on the same file.
func BenchmarkStrict(b *testing.B) {
	for _, connections := range []int{1, 64} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			one := request(b)
			l := running(b)
			took := map[bool][]time.Duration{} // by strict
			var mu sync.Mutex
			for _, strict := range []bool{false, true} {
				var left atomic.Int64
				left.Store(int64(b.N))
				var wg sync.WaitGroup
				for range connections {
					wg.Go(func() {
						var mine []time.Duration
						for left.Add(-1) >= 0 {
							r := one()
							begun := time.Now()
							var err error
							if strict {
								err = l.AppendDurable(&r)
							} else {
								err = l.Append(&r)
							}
							if err != nil {
								b.Error(err)
								return
							}
							mine = append(mine, time.Since(begun))
						}
						mu.Lock()
						took[strict] = append(took[strict], mine...)
						mu.Unlock()
					})
				}
				wg.Wait()
			}
			at := func(strict bool, part float64) float64 {
				d := took[strict]
				slices.Sort(d)
				return float64(d[int(part*float64(len(d)-1))].Microseconds())
			}
			b.ReportMetric(at(true, 0.5)-at(false, 0.5), "added-p50-us")
			b.ReportMetric(at(true, 0.99)-at(false, 0.99), "added-p99-us")
			b.ReportMetric(at(false, 0.5), "kill-p50-us")
			b.ReportMetric(at(false, 0.99), "kill-p99-us")
		})
	}
}

// request returns a function that makes records of an allowed request of
// ordinary size with its Input.
func request(b *testing.B) func() audit.Record {
	b.Helper()
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
	return func() audit.Record {
		r := audit.Record{
			Kind: audit.KindDecision, Subject: "https://idp.example.com#4242", Device: "dev-0123456789abcdef",
			Session: "ses-0123456789abcdef", Flow: "flw-0123456789abcdef", Method: "GET", Host: "crm.example.com",
			Path: "/customers/4711", Remote: "192.0.2.17", Input: input, InputCompact: true,
		}
		r.SetDecision(policy.Decision{ID: "0123456789abcdef", Allow: true, Reason: policy.ReasonAllowed, Message: "Access is allowed.", App: "crm", Rule: "crm.access[0]", Revision: "sha256-0123456789abcdef", Time: at})
		return r
	}
}

// running is a log on a real file whose Run goes until the benchmark ends.
func running(b *testing.B) *audit.Log {
	b.Helper()
	keys, err := people.Open(filepath.Join(b.TempDir(), "people"))
	if err != nil {
		b.Fatal(err)
	}
	l, err := audit.Open(audit.Options{Dir: b.TempDir(), People: keys})
	if err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	b.Cleanup(func() {
		if err := errors.Join(<-done, l.Close()); err != nil {
			b.Error(err)
		}
	})
	b.ResetTimer()
	return l
}
