package gateway

import (
	"net/http"
	"time"

	"github.com/portvakt/portvakt/gateway/media"
)

// MediaConfig bounds what the gateway holds of udp apps. What is left out has
// the default that [media.Timeouts] and [media.Limits] name.
type MediaConfig struct {
	Timeouts MediaTimeouts `yaml:"timeouts"`
	Limits   MediaLimits   `yaml:"limits"`
}

// MediaTimeouts bound how long is waited.
type MediaTimeouts struct {
	Idle     Duration `yaml:"idle"`
	IdleDNS  Duration `yaml:"idle_dns"`
	Resolve  Duration `yaml:"resolve"`
	PortRest Duration `yaml:"port_rest"`
	Drain    Duration `yaml:"drain"`
}

// MediaLimits bound what is held.
type MediaLimits struct {
	DeviceFlows   int `yaml:"device_flows"`
	DeviceOpening int `yaml:"device_opening"`
	DevicePorts   int `yaml:"device_ports"`
	Flows         int `yaml:"flows"`
	Sockets       int `yaml:"sockets"`
}

func (c MediaConfig) timeouts() media.Timeouts {
	t := c.Timeouts
	return media.Timeouts{
		Idle: time.Duration(t.Idle), IdleDNS: time.Duration(t.IdleDNS), Dial: time.Duration(t.Resolve),
		Rest: time.Duration(t.PortRest), Drain: time.Duration(t.Drain),
	}
}

func (c MediaConfig) limits() media.Limits {
	l := c.Limits
	return media.Limits{
		DeviceFlows: l.DeviceFlows, DeviceOpening: l.DeviceOpening, DevicePorts: l.DevicePorts, Flows: l.Flows, Sockets: l.Sockets,
	}
}

func (c MediaConfig) check(bad func(key, format string, args ...any)) {
	t, l := c.Timeouts, c.Limits
	checkWaits(bad, "media.timeouts.", []wait{
		{"idle", t.Idle},
		{"idle_dns", t.IdleDNS},
		{"resolve", t.Resolve},
		{"port_rest", t.PortRest},
		{"drain", t.Drain},
	})
	checkLimits(bad, "media.limits.", []limit{
		{"device_flows", int64(l.DeviceFlows), 1, 1 << 20},
		{"device_opening", int64(l.DeviceOpening), 1, 1 << 20},
		{"device_ports", int64(l.DevicePorts), 1, 1 << 16},
		{"flows", int64(l.Flows), 1, 1 << 20},
		{"sockets", int64(l.Sockets), 1, 1 << 16},
	})
}

// PublicTimeouts bound how long the public port waits for whoever connects.
type PublicTimeouts struct {
	ReadHeader Duration `yaml:"read_header"` // TLS, and then the head of one request; 10 s
	Read       Duration `yaml:"read"`        // one whole request; 30 s
	Idle       Duration `yaml:"idle"`        // between requests; 2 min
}

// apply changes what is named of a server's time-outs.
func (t PublicTimeouts) apply(srv *http.Server) {
	for _, w := range []struct {
		to *time.Duration
		v  Duration
	}{{&srv.ReadHeaderTimeout, t.ReadHeader}, {&srv.ReadTimeout, t.Read}, {&srv.IdleTimeout, t.Idle}} {
		if w.v > 0 {
			*w.to = time.Duration(w.v)
		}
	}
}

func (t PublicTimeouts) check(bad func(key, format string, args ...any)) {
	checkWaits(bad, "public.timeouts.", []wait{{"read_header", t.ReadHeader}, {"read", t.Read}, {"idle", t.Idle}})
}

// wait is a time-out below some key.
type wait struct {
	key string
	v   Duration
}

// limit is a number below some key, and what it may be.
type limit struct {
	key           string
	v, least, max int64
}

// checkWaits says which is no bound at all, or one that nothing could live with.
func checkWaits(bad func(key, format string, args ...any), below string, all []wait) {
	for _, w := range all {
		if v := time.Duration(w.v); v != 0 && (v < time.Second || v > time.Hour) {
			bad(below+w.key, "expected a duration between 1s and 1h")
		}
	}
}

// checkLimits does the same for numbers.
func checkLimits(bad func(key, format string, args ...any), below string, all []limit) {
	for _, n := range all {
		if n.v != 0 && (n.v < n.least || n.v > n.max) {
			bad(below+n.key, "expected between %d and %d, got %d", n.least, n.max, n.v)
		}
	}
}
