//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/portvakt/portvakt/deploy/bench/lab"
	"github.com/portvakt/portvakt/deploy/bench/load"
	"github.com/portvakt/portvakt/deploy/bench/output"
)

// way is one road from the client to the apps.
type way struct {
	name string
	at   lab.Place // where the load runs
	apps reach
	// gateway is the process whose CPU time and memory count; nil for raw.
	gateway *lab.Child
	laptop  *lab.Child // nil for who has no agent of ours
	// bad and mute are the neighbours of the way of that name; other is the
	// same laptop's way past the gateway.
	bad, mute, other *way
}

// sample is what one test found on one way, by the metric's name.
type sample map[string]float64

// Names of metrics. Every test on a way with a gateway also has metricCPU.
const (
	metricRate   = "rate"   // Mbit/s, requests/s, connections/s
	metricCPU    = "cpu"    // seconds of the gateway
	metricPerGB  = "per GB" // seconds of the gateway for 10^9 bytes
	metricPeak   = "peak"   // MiB
	metricP50    = "p50"    // microseconds
	metricP99    = "p99"
	metricJitter = "jitter"
	metricLoss   = "loss"        // percent
	metricPerMpk = "per million" // seconds of the gateway for 10^6 datagrams it carried, either way
)

// voicePort is the local port of the first call; the ports lie below those that
// the namespaces take by themselves.
const voicePort = 10000

// testSpec is one measurement, taken on several ways in turn.
type testSpec struct {
	name string
	app  string // which it is of; empty for none
	// print is the metric that the progress line shows, in unit.
	print, unit string
	run         func(ctx context.Context, b *bench, w *way, to netip.AddrPort) (sample, error)
}

// tests are all of them, in their order.
var tests = []testSpec{
	{"tcp-1-up", appIperf, metricRate, "Mbit/s", iperf(1, true)},
	{"tcp-1-down", appIperf, metricRate, "Mbit/s", iperf(1, false)},
	{"tcp-4-up", appIperf, metricRate, "Mbit/s", iperf(4, true)},
	{"tcp-4-down", appIperf, metricRate, "Mbit/s", iperf(4, false)},
	{"pages", appPages, metricRate, "requests/s", func(ctx context.Context, b *bench, w *way, to netip.AddrPort) (sample, error) {
		return b.wrk(ctx, w, "http://"+to.String()+"/")
	}},
	{"web", appWeb, metricRate, "requests/s", func(ctx context.Context, b *bench, w *way, _ netip.AddrPort) (sample, error) {
		return b.wrk(ctx, w, "https://"+webHost+"/")
	}},
	{"pingpong", appEcho, metricP50, "us p50", pingPong(0)},
	{"connect", appEcho, metricRate, "connections/s", connect},
	{"voice-20", appVoice, metricP50, "us p50", voice(20, 1, 50)},
	{"voice-1000", appVoice, metricLoss, "% lost", voice(1000, voicePorts, 100)},
	besideTest("mappings"), besideTest("idle"), besideTest("syns"), besideTest("malformed"), besideTest("outer"), besideTest("unread"),
	{testPeers, "", metricReturn, "s for 10,000", peers},
}

// measure runs a test on a way, with the gateway's CPU time around it.
func (b *bench) measure(ctx context.Context, t testSpec, w *way) (sample, error) {
	to, ok := w.apps[t.app]
	if !ok && t.app != "" {
		return nil, fmt.Errorf("%s has no app %s", w.name, t.app)
	}
	var before time.Duration
	if w.gateway != nil {
		var err error
		if before, err = w.gateway.CPU(); err != nil {
			return nil, err
		}
		if err := w.gateway.ResetPeak(); err != nil {
			return nil, err
		}
	}
	stop, err := b.profile(t, w)
	if err != nil {
		return nil, err
	}
	s, err := t.run(ctx, b, w, to)
	err = errors.Join(err, stop())
	if err != nil || w.gateway == nil {
		return s, err
	}
	after, err := w.gateway.CPU()
	if err != nil {
		return nil, err
	}
	peak, err := w.gateway.Peak()
	if err != nil {
		return nil, err
	}
	s[metricCPU], s[metricPeak] = (after - before).Seconds(), float64(peak)/(1<<20)
	if bytes, ok := s["bytes"]; ok {
		s[metricPerGB] = s[metricCPU] / (bytes / 1e9)
	}
	if n, ok := s["datagrams"]; ok {
		s[metricPerMpk] = s[metricCPU] / (n / 1e6)
	}
	return s, nil
}

// load runs a load where a way begins and returns what it printed.
func (b *bench) load(ctx context.Context, w *way, argv ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, b.length+20*time.Second)
	defer cancel()
	cmd := b.Command(ctx, w.at, argv...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		said := strings.TrimSpace(stderr.String())
		if _, exited := errors.AsType[*exec.ExitError](err); exited && said == "" {
			said = strings.TrimSpace(stdout.String())
		}
		return nil, fmt.Errorf("%s: %w: %.400s", argv[0], err, said)
	}
	return stdout.Bytes(), nil
}

func iperf(streams int, up bool) func(context.Context, *bench, *way, netip.AddrPort) (sample, error) {
	return func(ctx context.Context, b *bench, w *way, to netip.AddrPort) (sample, error) {
		argv := []string{
			"iperf3", "-J", "-c", to.Addr().String(), "-p", strconv.Itoa(int(to.Port())), "--connect-timeout", "3000",
			"-t", strconv.Itoa(int(b.length.Seconds())), "-P", strconv.Itoa(streams),
		}
		if !up {
			argv = append(argv, "-R")
		}
		// The server takes one client at a time, and goes on for a moment after
		// the last one has left.
		for try := 0; ; try++ {
			out, err := b.load(ctx, w, argv...)
			var s sample
			if err == nil {
				s, err = readIperf(out) // iperf3 may say that the server is busy and exit 0
			}
			if err == nil || try == 20 || !strings.Contains(err.Error(), "busy") {
				return s, err
			}
			time.Sleep(250 * time.Millisecond)
		}
	}
}

// readIperf takes what arrived, not what was sent into buffers.
func readIperf(out []byte) (sample, error) {
	var r struct {
		Error string
		End   struct {
			Received struct {
				Bytes float64
				Rate  float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return nil, fmt.Errorf("reading what iperf3 printed: %w", err)
	}
	if r.Error != "" || r.End.Received.Bytes == 0 {
		return nil, fmt.Errorf("iperf3 moved nothing: %s", r.Error)
	}
	return sample{metricRate: r.End.Received.Rate / 1e6, "bytes": r.End.Received.Bytes}, nil
}

func (b *bench) wrk(ctx context.Context, w *way, url string) (sample, error) {
	// Two seconds at least: the 64 handshakes at the beginning are not the row.
	out, err := b.load(ctx, w, "wrk", "-t2", "-c64", fmt.Sprintf("-d%ds", max(2, int(b.length.Seconds()))), url)
	if err != nil {
		return nil, err
	}
	rate, err := output.Wrk(string(out))
	if err != nil {
		return nil, err
	}
	return sample{metricRate: rate}, nil
}

// own runs one of this program's loads and decodes its answer.
func (b *bench) own(ctx context.Context, w *way, answer any, role string, args ...string) error {
	out, err := b.load(ctx, w, append([]string{b.self, role, "--for", b.length.String()}, args...)...)
	if err != nil {
		return fmt.Errorf("%s: %w", role, err)
	}
	if err := json.Unmarshal(out, answer); err != nil {
		return fmt.Errorf("reading what %s printed: %w", role, err)
	}
	return nil
}

func pingPong(every time.Duration) func(context.Context, *bench, *way, netip.AddrPort) (sample, error) {
	return func(ctx context.Context, b *bench, w *way, to netip.AddrPort) (sample, error) {
		var d load.Delays
		if err := b.own(ctx, w, &d, "pingpong", "--to", to.String(), "--every", every.String()); err != nil {
			return nil, err
		}
		return sample{metricP50: d.P50, metricP99: d.P99}, nil
	}
}

func connect(ctx context.Context, b *bench, w *way, to netip.AddrPort) (sample, error) {
	var o load.Opened
	if err := b.own(ctx, w, &o, "connect", "--to", to.String()); err != nil {
		return nil, err
	}
	if o.Failed > 0 {
		return nil, fmt.Errorf("%d connections failed beside %d that did not", o.Failed, o.Delays.Count)
	}
	return sample{metricRate: o.PerSecond, metricP99: o.Delays.P99}, nil
}

func voice(flows, ports, rate int) func(context.Context, *bench, *way, netip.AddrPort) (sample, error) {
	return func(ctx context.Context, b *bench, w *way, to netip.AddrPort) (sample, error) {
		var c load.Calls
		before, err := carried(w)
		if err != nil {
			return nil, err
		}
		err = b.own(ctx, w, &c, "voice", "--size", strconv.Itoa(voiceSize), "--to", to.String(), "--flows", strconv.Itoa(flows),
			"--ports", strconv.Itoa(ports), "--rate", strconv.Itoa(rate), "--first-port", strconv.Itoa(voicePort))
		if err != nil {
			return nil, err
		}
		if c.Received == 0 {
			return nil, fmt.Errorf("none of %d datagrams came back", c.Sent)
		}
		after, err := carried(w)
		if err != nil {
			return nil, err
		}
		return sample{
			metricLoss: c.Loss(), metricP50: c.Delays.P50, metricP99: c.Delays.P99, metricJitter: c.Delays.Jitter, "datagrams": after - before,
		}, nil
	}
}

// Bytes of a call's datagrams: what the caller says, and the same in a datagram
// of WireGuard, which pads to 16 and adds 32. Around both are the headers of
// Ethernet, IPv4 and UDP.
const (
	voiceSize    = 200
	voiceSealed  = (20+8+voiceSize+15)/16*16 + 32
	voiceHeaders = 14 + 20 + 8
)

// carried is how many datagrams of calls the gateway has sent so far, to the app
// and to the laptops. They are counted by their bytes: a frame may hold several.
func carried(w *way) (float64, error) {
	if w.gateway == nil {
		return 0, nil
	}
	sent, err := w.gateway.Sent()
	if err != nil {
		return 0, err
	}
	var n float64
	for cable, size := range map[string]int64{"lan": voiceSize, "wan": voiceSealed, "wan2": voiceSealed} {
		n += float64(sent[cable].Bytes-voiceHeaders*sent[cable].Frames) / float64(size)
	}
	return n, nil
}

const (
	peersPattern = "^Benchmark(DormantMemory|FirstContact|TenThousandBack|Restart|Handshakes)$"
	peersLimit   = 2 * time.Minute
)

// peers runs the Go benchmarks of gateway/tunnel, once each: what they measure
// they report themselves.
func peers(ctx context.Context, b *bench, _ *way, _ netip.AddrPort) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, peersLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "tunnel.test"), "-test.run", "^$", "-test.bench", peersPattern, "-test.benchtime", "1x")
	cmd.Dir = b.Dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("benchmarks of gateway/tunnel: %w: %.600s", err, out)
	}
	found, err := output.Benchmarks(string(out))
	if err != nil {
		return nil, err
	}
	s := sample(found)
	// CPU time of one, in microseconds, is what a core does in a second.
	for _, kind := range []string{"stock", "known", "dormant"} {
		if us := s["BenchmarkHandshakes "+kind+"-us"]; us > 0 {
			s["BenchmarkHandshakes "+kind+"/s"] = 1e6 / us
		}
	}
	return s, nil
}
