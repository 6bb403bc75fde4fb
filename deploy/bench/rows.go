//go:build linux

package main

import (
	"cmp"
	"math"
	"slices"

	"github.com/portvakt/portvakt/deploy/bench/table"
)

// Names of the ways.
const (
	wayRaw       = "raw"       // the cables alone
	wayStock     = "stock"     // wireguard-go with kernel TUN at both ends
	wayUserspace = "userspace" // agent in TUN mode, gateway with its userspace stack
	wayTUN       = "tun"       // agent in TUN mode, gateway in TUN mode
	wayRootless  = "rootless"  // agent without privilege, gateway with its userspace stack
	wayProcess   = "process"   // no network: Go benchmarks of gateway/tunnel
	// wayNeighbours is userspace beside laptops that misbehave.
	wayNeighbours = "neighbours"
)

// baseline is the name under which the rows give the stock way.
const baseline = "stock wireguard-go"

// rowSpec says where a row's values come from.
type rowSpec struct {
	name, unit   string
	lower        bool
	floor, goal  table.Limit
	test, metric string
	way          string
	// base is the test of the stock way to compare with, when it is another.
	base string
	// baseMetric is the metric to compare with that the same measurement has,
	// instead of the stock way's; baseName is what it is called if that is not
	// stock either.
	baseMetric, baseName string
	// scale is how much of the metric's unit one of the row's is; 0 means 1.
	scale float64
}

var rowSpecs = slices.Concat(plainRows, besideRows)

var plainRows = []rowSpec{
	tcpRow("", "TCP 1 stream, up", "tcp-1-up", wayUserspace, 0.9, 1.1),
	tcpRow("", "TCP 1 stream, down", "tcp-1-down", wayUserspace, 0.85, 1.1),
	tcpRow("", "TCP 4 streams, up", "tcp-4-up", wayUserspace, 0.9, 1.1),
	tcpRow("", "TCP 4 streams, down", "tcp-4-down", wayUserspace, 0.85, 1.1),
	tcpRow("gateway in TUN mode: ", "TCP 1 stream, up", "tcp-1-up", wayTUN, 1, 1.15),
	tcpRow("gateway in TUN mode: ", "TCP 1 stream, down", "tcp-1-down", wayTUN, 1, 1.15),
	tcpRow("gateway in TUN mode: ", "TCP 4 streams, up", "tcp-4-up", wayTUN, 1, 1.15),
	tcpRow("gateway in TUN mode: ", "TCP 4 streams, down", "tcp-4-down", wayTUN, 1, 1.15),
	tcpRow("rootless agent: ", "TCP 1 stream, up", "tcp-1-up", wayRootless, 0.5, 0.75),
	tcpRow("rootless agent: ", "TCP 1 stream, down", "tcp-1-down", wayRootless, 0.5, 0.75),
	tcpRow("rootless agent: ", "TCP 4 streams, up", "tcp-4-up", wayRootless, 0.5, 0.75),
	tcpRow("rootless agent: ", "TCP 4 streams, down", "tcp-4-down", wayRootless, 0.5, 0.75),
	{
		name: "gateway CPU for 1 GB down", unit: "s", lower: true, floor: table.Ratio(1.5), goal: table.Ratio(1),
		test: "tcp-1-down", metric: metricPerGB, way: wayUserspace,
	},
	{
		name: "HTTP 100 B, 64 connections, as a TCP app", unit: "requests/s", floor: table.Ratio(0.7), goal: table.Ratio(0.9),
		test: "pages", metric: metricRate, way: wayUserspace,
	},
	{
		name: "HTTP 100 B, 64 connections, as an HTTP app", unit: "requests/s", floor: table.Ratio(0.5), goal: table.Ratio(0.6),
		test: "web", metric: metricRate, way: wayUserspace, base: "pages",
	},
	{
		name: "request round trip p50", unit: "us", lower: true, floor: table.Ratio(1.5), goal: table.Ratio(1.25),
		test: "pingpong", metric: metricP50, way: wayUserspace,
	},
	{
		name: "request round trip p99", unit: "us", lower: true, floor: table.Ratio(1.5), goal: table.Ratio(1.25),
		test: "pingpong", metric: metricP99, way: wayUserspace,
	},
	{
		name: "new connections, 8 workers", unit: "per s", floor: table.Ratio(0.65), goal: table.Ratio(0.8),
		test: "connect", metric: metricRate, way: wayUserspace,
	},
	{
		name: "gateway memory under 4 streams", unit: "MiB", lower: true, floor: table.Ratio(0.35), goal: table.Ratio(0.25),
		test: "tcp-4-down", metric: metricPeak, way: wayUserspace,
	},
	{
		name: "voice, 20 flows: loss", unit: "%", lower: true, floor: table.Value(0), goal: table.Value(0),
		test: "voice-20", metric: metricLoss, way: wayUserspace,
	},
	{
		name: "voice, 20 flows: delay p50", unit: "us", lower: true, floor: table.Ratio(1.2), goal: table.Ratio(1),
		test: "voice-20", metric: metricP50, way: wayUserspace,
	},
	{
		name: "voice, 20 flows: jitter", unit: "us", lower: true, floor: table.Ratio(1.2), goal: table.Ratio(1),
		test: "voice-20", metric: metricJitter, way: wayUserspace,
	},
	{
		name: "voice, 1,000 flows: loss", unit: "%", lower: true, floor: table.Ratio(0.5), goal: table.Value(5),
		test: "voice-1000", metric: metricLoss, way: wayUserspace,
	},
	{
		name: "voice, 1,000 flows: gateway CPU for 10^6 packets", unit: "s", lower: true, floor: table.Value(8), goal: table.Value(6),
		test: "voice-1000", metric: metricPerMpk, way: wayUserspace,
	},
	{
		name: "memory of a dormant registration", unit: "KiB", lower: true, floor: table.Value(2), goal: table.Value(1),
		test: testPeers, metric: "BenchmarkDormantMemory B/slept", way: wayProcess, scale: 1 << 10,
	},
	{
		name: "memory of an active device", unit: "KiB", lower: true, floor: table.Value(40), goal: table.Value(30),
		test: testPeers, metric: "BenchmarkDormantMemory B/active", way: wayProcess, scale: 1 << 10,
	},
	{
		name: "dormant device, datagram in to answer out, p99", unit: "ms", lower: true, floor: table.Value(1.5), goal: table.Value(1),
		test: testPeers, metric: "BenchmarkFirstContact p99-us", way: wayProcess, scale: 1000,
	},
	{
		name: "10,000 dormant devices back", unit: "s", lower: true, floor: table.Value(6), goal: table.Value(4),
		test: testPeers, metric: metricReturn, way: wayProcess,
	},
	{
		name: "gateway starts again: a stock device's call is back", unit: "s", lower: true, floor: table.Value(2), goal: table.Value(0.6),
		test: testPeers, metric: "BenchmarkRestart one-s", way: wayProcess,
	},
	{
		name: "gateway starts again: the last of 1,000 is back", unit: "s", lower: true, floor: table.Value(2), goal: table.Value(2),
		test: testPeers, metric: "BenchmarkRestart last-s", way: wayProcess,
	},
	{
		name: "handshakes, known endpoint", unit: "per core and s", floor: table.Ratio(0.9), goal: table.Ratio(1),
		test: testPeers, metric: "BenchmarkHandshakes known/s", way: wayProcess, baseMetric: stockHandshakes,
	},
	{
		name: "handshakes, dormant device", unit: "per core and s", floor: table.Ratio(0.5), goal: table.Ratio(0.6),
		test: testPeers, metric: "BenchmarkHandshakes dormant/s", way: wayProcess, baseMetric: stockHandshakes,
	},
}

const (
	testPeers       = "peers"
	stockHandshakes = "BenchmarkHandshakes stock/s"
	metricReturn    = "BenchmarkTenThousandBack s"
)

func tcpRow(mode, name, test, way string, floor, goal float64) rowSpec {
	return rowSpec{
		name: mode + name, unit: "Mbit/s", floor: table.Ratio(floor), goal: table.Ratio(goal), test: test, metric: metricRate, way: way,
	}
}

// alone says that nothing of the row is measured on the stock way.
func (s rowSpec) alone() bool { return s.way == wayProcess || s.way == wayNeighbours }

// baseTest is the test that the stock way is compared in.
func (s rowSpec) baseTest() string {
	if s.base != "" {
		return s.base
	}
	return s.test
}

// row fills a row from what was measured.
func (s rowSpec) row(m measured) table.Row {
	r := table.Row{
		Name: s.name, Unit: s.unit, LowerIsBetter: s.lower, Floor: s.floor, Goal: s.goal,
		Ours: m.values(s.test, s.way, s.metric, s.scale),
	}
	switch {
	case s.baseMetric != "":
		r.Baseline, r.BaselineName = m.values(s.test, s.way, s.baseMetric, s.scale), cmp.Or(s.baseName, baseline)
	case !s.alone():
		r.Baseline, r.BaselineName = m.values(s.baseTest(), wayStock, s.metric, s.scale), baseline
		r.Raw = m.values(s.baseTest(), wayRaw, s.metric, s.scale)
	}
	return r
}

// measured holds the samples by test and way, one a round; a nil sample is a
// measurement that failed.
type measured map[[2]string][]sample

// values are a metric's values round by round, NaN where a round failed. A way
// that was not measured, or knows no such metric, has none.
func (m measured) values(test, way, metric string, scale float64) []float64 {
	if scale == 0 {
		scale = 1
	}
	var out []float64
	for _, s := range m[[2]string{test, way}] {
		v, ok := s[metric]
		switch {
		case s == nil:
			v = math.NaN()
		case !ok:
			return nil
		}
		out = append(out, v/scale)
	}
	return out
}
