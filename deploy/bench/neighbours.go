//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/portvakt/portvakt/deploy/bench/lab"
	"github.com/portvakt/portvakt/deploy/bench/load"
	"github.com/portvakt/portvakt/deploy/bench/table"
)

// badRate is how many packets a bad laptop sends in a second, connections in a
// tenth of it. The load shares its processors with the gateway: without a pace
// the rows would measure how busy the machine is. A laptop that had processors
// for less than leastRate of it was none.
const (
	badRate   = 20_000
	leastRate = 0.8
	// goodEvery is how often the good laptop asks, at most: one that asked without
	// end would leave the bad one no processor to misbehave with.
	goodEvery = time.Millisecond
)

// Metrics of the tests beside a bad laptop.
const (
	metricCalm = "p99 before" // the good laptop's own, in the same measurement
	metricPast = "p99 past"   // at the same time through stock wireguard-go
	metricGrow = "growth"     // MiB of the gateway's resident set at most
	metricCost = "cost"       // milliseconds of the gateway's processors a second, beside it less before
)

// besideRows are four rows for every way of misbehaving.
var besideRows = func() (out []rowSpec) {
	for _, a := range []struct{ kind, what string }{
		{"mappings", "50,000 UDP mappings"},
		{"idle", "10,000 idle TCP connections"},
		{"syns", "a flood of SYNs"},
		{"malformed", "malformed inner packets"},
		{"outer", "forged and replayed datagrams"},
		{"unread", "a WebSocket that nobody reads"},
	} {
		name, test := "beside "+a.what+": ", besideTest(a.kind).name
		out = append(
			out,
			rowSpec{
				name: name + "round trip p99", unit: "us", lower: true, floor: table.Ratio(2), goal: table.Ratio(1.5),
				test: test, metric: metricP99, way: wayNeighbours, baseMetric: metricCalm, baseName: "before it",
			},
			rowSpec{
				name: name + "voice lost", unit: "%", lower: true, floor: table.Value(1), goal: table.Value(0),
				test: test, metric: metricLoss, way: wayNeighbours,
			},
			rowSpec{
				name: name + "gateway grows by", unit: "MiB", lower: true, floor: table.Value(96), goal: table.Value(48),
				test: test, metric: metricGrow, way: wayNeighbours,
			},
			rowSpec{
				name: name + "gateway CPU it costs", unit: "ms/s", lower: true, floor: table.Value(250), goal: table.Value(150),
				test: test, metric: metricCost, way: wayNeighbours,
			},
		)
	}
	return out
}()

// neighbours brings up two laptops that will misbehave: one in TUN mode, whose
// root writes what packets it likes, and one that is let through by WebSocket
// only and whose agent can be made to stand still. The first gives way to all
// others: a laptop has processors of its own, and takes the gateway's by what it
// sends alone.
func (b *bench) neighbours(ctx context.Context, good, stock *way, g *gateway) (*way, error) {
	w := *good
	w.name, w.other = wayNeighbours, stock
	var err error
	b.Yield(lab.AtClient3)
	if w.bad, err = b.way(ctx, "bad", lab.AtClient3, g, true); err != nil {
		return nil, err
	}
	if err := b.IP(ctx, lab.AtClient2, fmt.Sprintf("rule add pref 10 to %s/32 ipproto udp dport 51820 blackhole", g.addr)); err != nil {
		return nil, err
	}
	if w.mute, err = b.way(ctx, "mute", lab.AtClient2, g, false); err != nil {
		return nil, err
	}
	metrics, err := b.page(ctx, lab.AtGateway, "http://127.0.0.1:9100/metrics")
	if err == nil && !strings.Contains(metrics, "\nportvakt_websockets 1\n") {
		err = errors.New("the laptop without UDP does not come by a WebSocket")
	}
	return &w, err
}

// besideTest measures the good laptop's round trips and one call, first alone
// and then beside a bad one. What becomes of the round trips past the gateway,
// through stock wireguard-go at the same time, says what is the machine's share.
func besideTest(kind string) testSpec {
	return testSpec{"beside-" + kind, appEcho, metricP99, "us p99", func(ctx context.Context, b *bench, w *way, to netip.AddrPort) (sample, error) {
		before, err := b.good(ctx, w, to)
		if err != nil {
			return nil, fmt.Errorf("before it began: %w", err)
		}
		if err := w.gateway.ResetPeak(); err != nil { // which makes it what is resident now
			return nil, err
		}
		resident, err := w.gateway.Peak()
		if err != nil {
			return nil, err
		}
		stop, err := b.misbehave(ctx, w, kind)
		if err != nil {
			return nil, err
		}
		s, err := b.good(ctx, w, to)
		done, stopErr := stop()
		if err := errors.Join(err, stopErr); err != nil {
			return nil, err
		}
		peak, err := w.gateway.Peak()
		if err != nil {
			return nil, err
		}
		s[metricCalm], s[metricGrow] = before[metricP99], float64(peak-resident)/(1<<20)
		s[metricCost] = s[metricCost] - before[metricCost]
		fmt.Fprintf(b.log, "  %s: sent %d, refused %d, open at most %d in %.1f s; p99 %.0f us before, %.0f beside it (past the gateway %.0f, %.0f); voice lost %.1f%%; gateway from %.0f by %.1f MiB, %+.0f ms CPU a second\n",
			kind, done.Sent, done.Refused, done.Open, done.Seconds, before[metricP99], s[metricP99], before[metricPast], s[metricPast], s[metricLoss], float64(resident)/(1<<20), s[metricGrow], s[metricCost])
		return s, keptPace(kind, done)
	}}
}

// keptPace says whether a bad laptop sent about what it should have. The one that
// nobody reads sends what is taken.
func keptPace(kind string, done load.Mischief) error {
	want := badRate * done.Seconds
	switch kind {
	case "unread":
		return nil
	case "idle":
		want /= 10
	}
	if float64(done.Sent) < leastRate*want {
		return fmt.Errorf("the bad laptop sent %d, of %.0f", done.Sent, want)
	}
	return nil
}

// good is what the good laptop notices, and what the gateway did meanwhile.
func (b *bench) good(ctx context.Context, w *way, to netip.AddrPort) (sample, error) {
	at := time.Now()
	spent, err := w.gateway.CPU()
	if err != nil {
		return nil, err
	}
	type result struct {
		sample
		error
	}
	call, past := make(chan result, 1), make(chan result, 1)
	go func() {
		s, err := voice(1, 1, 50)(ctx, b, w, w.apps[appVoice])
		call <- result{s, err}
	}()
	go func() {
		s, err := pingPong(goodEvery)(ctx, b, w.other, w.other.apps[appEcho])
		past <- result{s, err}
	}()
	s, err := pingPong(goodEvery)(ctx, b, w, to)
	v, p := <-call, <-past
	if err := errors.Join(err, v.error, p.error); err != nil {
		return nil, err
	}
	s[metricPast] = p.sample[metricP99]
	s[metricLoss] = v.sample[metricLoss]
	after, err := w.gateway.CPU()
	s[metricCost] = 1000 * (after - spent).Seconds() / time.Since(at).Seconds()
	return s, err
}

// misbehave starts it and returns when it is in force.
func (b *bench) misbehave(ctx context.Context, w *way, kind string) (stop func() (load.Mischief, error), err error) {
	from := w.bad
	if kind == "unread" {
		from = w.mute
	}
	ctx, cancel := context.WithTimeout(ctx, b.length+30*time.Second)
	cmd := b.Command(ctx, from.at, b.self, "bad", "--kind", kind, "--rate", strconv.Itoa(badRate),
		"--to", from.apps[appEcho].String(), "--voice", from.apps[appVoice].String(), "--for", (b.length + 20*time.Second).String())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	lines := bufio.NewReader(out)
	if _, err := lines.ReadString('\n'); err != nil {
		cancel()
		return nil, errors.Join(fmt.Errorf("misbehaving by %s: %w", kind, err), cmd.Wait())
	}
	if kind == "unread" {
		if err := from.laptop.Signal(syscall.SIGUSR1); err != nil {
			cancel()
			return nil, errors.Join(err, cmd.Wait())
		}
	}
	return func() (done load.Mischief, err error) {
		defer cancel()
		if kind == "unread" {
			err = from.laptop.Signal(syscall.SIGUSR2)
		}
		err = errors.Join(err, cmd.Process.Signal(syscall.SIGTERM))
		return done, errors.Join(err, json.NewDecoder(lines).Decode(&done), cmd.Wait())
	}, nil
}

func playBad(ctx context.Context, args []string) error {
	var m load.Misbehave
	var voice string
	to, d, err := loadFlags("bad", args, func(fs *flag.FlagSet) {
		fs.StringVar(&m.Kind, "kind", "", "of misbehaviour")
		fs.IntVar(&m.Rate, "rate", badRate, "packets per second")
		fs.StringVar(&voice, "voice", "", "address of the voice app")
	})
	if err != nil {
		return err
	}
	if m.To, err = netip.ParseAddrPort(to); err != nil {
		return err
	}
	if m.Voice, err = netip.ParseAddrPort(voice); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return say(m.Run(ctx, func() { fmt.Println("begun") }))
}
