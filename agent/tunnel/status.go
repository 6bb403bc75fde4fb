package tunnel

import (
	"strconv"
	"strings"
	"time"
)

// Status is the state of a tunnel.
type Status struct {
	LastHandshake time.Time // zero before the first
	Rx, Tx        uint64    // bytes, WireGuard's own included
	LocalPort     uint16    // of the UDP socket
	Endpoint      string    // the gateway's UDP address, ip:port
	// Transport is TransportUDP or TransportWebSocket. TransportReason is why it
	// is not simply UDP, for people, or empty.
	Transport, TransportReason string
	// MTU of the inside, in bytes, that is proven to pass.
	MTU int
}

// Status reads the tunnel's state. It is zero once the tunnel is closed.
func (t *Tunnel) Status() Status {
	conf, err := t.dev.IpcGet()
	if err != nil {
		t.log.Warn("tunnel's state cannot be read", "err", err)
		return Status{}
	}
	var s Status
	var sec, nsec int64
	peer := false
	for line := range strings.Lines(conf) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch k {
		case "listen_port":
			n, _ := strconv.ParseUint(v, 10, 16)
			s.LocalPort = uint16(n)
		case "public_key":
			peer = true
		case "endpoint":
			s.Endpoint = v
		case "last_handshake_time_sec":
			sec, _ = strconv.ParseInt(v, 10, 64)
		case "last_handshake_time_nsec":
			nsec, _ = strconv.ParseInt(v, 10, 64)
		case "rx_bytes":
			s.Rx, _ = strconv.ParseUint(v, 10, 64)
		case "tx_bytes":
			s.Tx, _ = strconv.ParseUint(v, 10, 64)
		}
	}
	if !peer {
		return Status{}
	}
	s.Transport, s.TransportReason = t.ladder.transport()
	s.MTU = int(t.fit.segments.Load())
	if sec != 0 || nsec != 0 {
		s.LastHandshake = time.Unix(sec, nsec)
	}
	return s
}
