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
	Read           Duration `yaml:"read"`
	Write          Duration `yaml:"write"`
	WriteTCP       Duration `yaml:"write_tcp"`
	WebSocketPing  Duration `yaml:"websocket_ping"`
	Drain          Duration `yaml:"drain"`
	UpstreamIdle   Duration `yaml:"upstream_idle"`
	LeaveAlone     Duration `yaml:"leave_alone"`
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
	DeviceDeciding        int   `yaml:"device_deciding"`
	FailedDials           int   `yaml:"failed_dials"`
}

func (c ProxyConfig) timeouts() proxy.Timeouts {
	t := c.Timeouts
	return proxy.Timeouts{
		UpstreamIdle: time.Duration(t.UpstreamIdle), LeaveAlone: time.Duration(t.LeaveAlone),
		Handshake: time.Duration(t.Handshake), ReadHeader: time.Duration(t.ReadHeader), Idle: time.Duration(t.Idle), Dial: time.Duration(t.Dial),
		ResponseHeader: time.Duration(t.ResponseHeader), Read: time.Duration(t.Read), Write: time.Duration(t.Write), WriteTCP: time.Duration(t.WriteTCP), Ping: time.Duration(t.WebSocketPing), Drain: time.Duration(t.Drain),
	}
}

func (c ProxyConfig) limits() proxy.Limits {
	l := c.Limits
	return proxy.Limits{
		HeaderBytes: l.HeaderBytes, ResponseHeaderBytes: l.ResponseHeaderBytes, Message: l.WebSocketMessageBytes, Streams: l.Streams,
		Pending: l.Pending, DevicePending: l.DevicePending, DeviceConns: l.DeviceConnections,
		Deciding: l.DeviceDeciding, FailedDials: l.FailedDials,
	}
}

// check says what is no bound at all, or one that nothing could live with.
func (c ProxyConfig) check(bad func(key, format string, args ...any)) {
	t, l := c.Timeouts, c.Limits
	checkWaits(bad, "proxy.timeouts.", []wait{
		{"handshake", t.Handshake},
		{"read_header", t.ReadHeader},
		{"idle", t.Idle},
		{"dial", t.Dial},
		{"response_header", t.ResponseHeader},
		{"read", t.Read},
		{"write", t.Write},
		{"write_tcp", t.WriteTCP},
		{"websocket_ping", t.WebSocketPing},
		{"drain", t.Drain},
		{"upstream_idle", t.UpstreamIdle},
		{"leave_alone", t.LeaveAlone},
	})
	checkLimits(bad, "proxy.limits.", []limit{
		{"header_bytes", int64(l.HeaderBytes), 4 << 10, 1 << 20},
		{"response_header_bytes", l.ResponseHeaderBytes, 4 << 10, 16 << 20},
		{"websocket_message_bytes", l.WebSocketMessageBytes, 125, 1 << 40},
		{"streams", int64(l.Streams), 1, 10_000},
		{"pending", int64(l.Pending), 1, 1 << 20},
		{"device_pending", int64(l.DevicePending), 1, 1 << 20},
		{"device_connections", int64(l.DeviceConnections), 1, 1 << 20},
		{"device_deciding", int64(l.DeviceDeciding), 1, 1 << 10},
		{"failed_dials", int64(l.FailedDials), 1, 1 << 10},
	})
}
