package session_test

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

// BenchmarkDormantMemory is what a registration costs here and in the segment
// table whose laptop sleeps, with 30 apps: heap, in bytes. "registered" never
// logged in, "slept" did and reported its posture.
func BenchmarkDormantMemory(b *testing.B) {
	const n, apps = 2000, 30
	g := newGateway(b)
	var files []string
	for i := range apps {
		files = append(files, fmt.Sprintf("name: app%d\ntitle: App\nprotocol: http\nupstream: http://app.example.com\nhosts: [app%d.example.com]\naccess:\n  - groups: [sales]\n    posture: {host_firewall: pass}\n", i, i))
	}
	g.publish(files...)
	used := func() float64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	var registered, slept float64
	rounds := 0
	for b.Loop() {
		now := time.Unix(0, g.now.Load())
		ids, keys := make([]string, n), make([][32]byte, n)
		before := used()
		for i := range n {
			ids[i], keys[i] = fmt.Sprintf("dev-%032d", rounds*n+i), [32]byte{byte(rounds), byte(i >> 8), byte(i), 9}
			c := session.Connection{
				Device: store.Device{
					ID: ids[i], Name: "laptop-" + ids[i][10:], Serial: "PF" + ids[i][24:], OS: "linux", Arch: "amd64", KeyTier: "software", PublicKey: make([]byte, 91),
					Addresses: [2]netip.Addr{netip.AddrFrom4([4]byte{100, byte(96 + rounds), byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 13: byte(rounds), 14: byte(i >> 8), 15: byte(i)})},
				},
				Registration: store.Registration{DeviceID: ids[i], TunnelKey: keys[i], BootID: strings.Clone("6a3ad6a5-6a5e-4d7e-9b0e-1a2b3c4d5e6f"), ExpiresAt: now.Add(12 * time.Hour)},
				Nonce:        "n-first",
			}
			if err := g.m.Connect(c); err != nil {
				b.Fatal(err)
			}
		}
		registered += (used() - before) / n
		for i, id := range ids {
			signals := map[string]policy.Signal{}
			for _, name := range wire.Signals {
				signals[name] = policy.Signal{State: "pass"}
			}
			if _, err := g.m.Posture(id, "n-first", "6a3ad6a5-6a5e-4d7e-9b0e-1a2b3c4d5e6f", signals); err != nil {
				b.Fatal(err)
			}
			g.m.Endpoint(keys[i], netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), 4000))
		}
		g.now.Add(int64(2 * time.Minute)) // the reports are stale
		g.m.Relocate()
		ctx, cancel := context.WithTimeout(b.Context(), 2500*time.Millisecond)
		if err := g.m.Run(ctx); err != nil {
			b.Fatal(err)
		}
		cancel()
		slept += (used() - before) / n
		runtime.KeepAlive(ids)
		rounds++
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(registered/float64(rounds), "B/registered")
	b.ReportMetric(slept/float64(rounds), "B/slept")
}
