package gateway

import (
	"time"

	"github.com/portvakt/portvakt/gateway/proxy"
)

// ProxyConfig bounds what stands between devices and apps. What is left out has
// the default that [proxy.Timeouts] and [proxy.Limits] name.
type ProxyConfig struct {
	Timeouts ProxyTimeouts `yaml:"timeouts"`
	Limits   ProxyLimits   `yaml:"limits"`
}

// ProxyTimeouts bound how long is waited.
type ProxyTimeouts struct {
	Handshake      Duration `yaml:"handshake"`
	ReadHeader     Duration `yaml:"read_header"`
	Idle           Duration `yaml:"idle"`
	Dial           Duration `yaml:"dial"`
	ResponseHeader Duration `yaml:"response_header"`
	Write          Duration `yaml:"write"`
	WriteTCP       Duration `yaml:"write_tcp"`
	WebSocketPing  Duration `yaml:"websocket_ping"`
	Drain          Duration `yaml:"drain"`
}

// ProxyLimits bound what is held.
type ProxyLimits struct {
	HeaderBytes           int   `yaml:"header_bytes"`
	ResponseHeaderBytes   int64 `yaml:"response_header_bytes"`
	WebSocketMessageBytes int64 `yaml:"websocket_message_bytes"`
	Streams               int   `yaml:"streams"`
	Pending               int   `yaml:"pending"`
	DevicePending         int   `yaml:"device_pending"`
	DeviceConnections     int   `yaml:"device_connections"`
}

func (c ProxyConfig) timeouts() proxy.Timeouts {
	t := c.Timeouts
	return proxy.Timeouts{
		Handshake: time.Duration(t.Handshake), ReadHeader: time.Duration(t.ReadHeader), Idle: time.Duration(t.Idle), Dial: time.Duration(t.Dial),
		ResponseHeader: time.Duration(t.ResponseHeader), Write: time.Duration(t.Write), WriteTCP: time.Duration(t.WriteTCP), Ping: time.Duration(t.WebSocketPing), Drain: time.Duration(t.Drain),
	}
}

func (c ProxyConfig) limits() proxy.Limits {
	l := c.Limits
	return proxy.Limits{
		HeaderBytes: l.HeaderBytes, ResponseHeaderBytes: l.ResponseHeaderBytes, Message: l.WebSocketMessageBytes, Streams: l.Streams,
		Pending: l.Pending, DevicePending: l.DevicePending, DeviceConns: l.DeviceConnections,
	}
}

// check says what is no bound at all, or one that nothing could live with.
func (c ProxyConfig) check(bad func(key, format string, args ...any)) {
	t, l := c.Timeouts, c.Limits
	for _, d := range []struct {
		key string
		v   Duration
	}{
		{"handshake", t.Handshake},
		{"read_header", t.ReadHeader},
		{"idle", t.Idle},
		{"dial", t.Dial},
		{"response_header", t.ResponseHeader},
		{"write", t.Write},
		{"write_tcp", t.WriteTCP},
		{"websocket_ping", t.WebSocketPing},
		{"drain", t.Drain},
	} {
		if v := time.Duration(d.v); v != 0 && (v < time.Second || v > time.Hour) {
			bad("proxy.timeouts."+d.key, "expected a duration between 1s and 1h")
		}
	}
	for _, n := range []struct {
		key           string
		v, least, max int64
	}{
		{"header_bytes", int64(l.HeaderBytes), 4 << 10, 1 << 20},
		{"response_header_bytes", l.ResponseHeaderBytes, 4 << 10, 16 << 20},
		{"websocket_message_bytes", l.WebSocketMessageBytes, 125, 1 << 40},
		{"streams", int64(l.Streams), 1, 10_000},
		{"pending", int64(l.Pending), 1, 1 << 20},
		{"device_pending", int64(l.DevicePending), 1, 1 << 20},
		{"device_connections", int64(l.DeviceConnections), 1, 1 << 20},
	} {
		if n.v != 0 && (n.v < n.least || n.v > n.max) {
			bad("proxy.limits."+n.key, "expected between %d and %d, got %d", n.least, n.max, n.v)
		}
	}
}
