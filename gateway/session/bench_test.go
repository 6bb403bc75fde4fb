package session_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
)

// BenchmarkLockdown cuts 10,000 open flows of 200 devices: last-cut-ms is when
// the last of them was cut, answer-ms when the lockdown was stored too, lost how
// many cuts the log could not keep.
func BenchmarkLockdown(b *testing.B) {
	g := newGateway(b)
	var laptops []*laptop
	for i := range 200 {
		laptops = append(laptops, g.ready(fmt.Sprintf("d%d", i)))
	}
	var last, answer time.Duration
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		var flows []*session.Flow
		for _, l := range laptops {
			for range 50 {
				flows = append(flows, g.open(l, "desk"))
			}
		}
		cut := make(chan time.Time, len(flows))
		for _, f := range flows {
			f.OnCut(func() { cut <- time.Now() })
		}
		b.StartTimer()
		start := time.Now()
		lock, n := g.lockdown(store.ScopeAll, "")
		answer += time.Since(start)
		b.StopTimer()
		if n != len(flows) {
			b.Fatalf("%d flows cut, want %d", n, len(flows))
		}
		latest := start
		for range flows {
			if at := <-cut; at.After(latest) {
				latest = at
			}
		}
		last += latest.Sub(start)
		for _, f := range flows {
			f.End(session.Result{Outcome: "done"})
		}
		g.lift(lock.ID)
		b.StartTimer()
	}
	b.ReportMetric(float64(last.Milliseconds())/float64(b.N), "last-cut-ms")
	b.ReportMetric(float64(answer.Milliseconds())/float64(b.N), "answer-ms")
	b.ReportMetric(float64(g.audit.Lost())/float64(b.N), "lost")
}
