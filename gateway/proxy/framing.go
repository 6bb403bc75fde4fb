package proxy

import (
	"crypto/tls"
	"encoding/binary"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/policy"
)

// framing is a device's HTTP/2 connection. What HTTP/2's framing refuses
// reaches no handler, so the answers are looked at: a stream or a connection
// that ends for a fault of the device's is noted as any refused request is.
//
// net/http lets nobody between itself and a [tls.Conn], but takes HTTP/2 from
// what is none: so this must not look like one until HTTP/2 has begun; see shaken.
type framing struct {
	net.Conn // under TLS
	p        *Proxy
	conn     *conn

	// Of whoever writes, one at a time: the frame that is going out.
	head   [frameHead]byte
	n      int // how much of head is there
	left   int // bytes of its payload
	code   [8]byte
	at     int // how much of code is there
	fields *hpack.Decoder
	said   int // which of itsAnswers a field section says, -1 for none

	answered [len(itsAnswers)]atomic.Int64 // of these, what handlers said, an app's or ours

	// Of whoever reads: the frame that is coming in.
	length [frameHead]byte
	have   int           // how much of its head is there
	skip   int           // bytes of the preface, or of the frame's payload, that are to come
	came   atomic.Uint64 // frames that came as a whole
}

const frameHead = 9 // bytes (RFC 9113, 4.1)

// itsAnswers are those that net/http's HTTP/2 gives without a handler, and why.
var itsAnswers = [...]struct {
	status int
	why    string
}{
	{http.StatusBadRequest, "a field that is about a connection"}, // RFC 9113, 8.2.2
	{http.StatusRequestHeaderFieldsTooLarge, "a field section that is too large"},
}

func newFraming(p *Proxy, tc *tls.Conn, c *conn) *framing {
	f := &framing{Conn: tc, p: p, conn: c, skip: len(http2.ClientPreface), said: -1}
	f.fields = hpack.NewDecoder(4096, func(field hpack.HeaderField) {
		for i, a := range itsAnswers {
			if field.Name == ":status" && field.Value == strconv.Itoa(a.status) {
				f.said = i
			}
		}
	})
	return f
}

// shaken is a framing that says it is over TLS.
type shaken struct{ *framing }

// ConnectionState is what net/http's HTTP/2 looks for.
func (s shaken) ConnectionState() tls.ConnectionState { return s.Conn.(*tls.Conn).ConnectionState() }

// UnencryptedNetConn is what it asks for the connection that was handed to it.
func (s shaken) UnencryptedNetConn() net.Conn { return s }

// tellScheme has requests over HTTP/2 tell their :scheme: Request.TLS is there
// for https alone, and on a connection over TLS alone. That ours are is said
// where net/http hands them to its HTTP/2, by the name that has in TLSNextProto.
// If a later net/http has another, every such request is refused.
func tellScheme(srv *http.Server) {
	const key = "unencrypted_http2"
	begin := srv.TLSNextProto[key]
	if begin == nil {
		return
	}
	srv.TLSNextProto[key] = func(srv *http.Server, c *tls.Conn, h http.Handler) {
		if handed, ok := c.NetConn().(interface{ UnencryptedNetConn() net.Conn }); ok {
			if f, ok := handed.UnencryptedNetConn().(*framing); ok {
				c = tls.Client(shaken{f}, nil)
			}
		}
		begin(srv, c, h)
	}
}

type framingKey struct{}

// NetConn returns the connection underneath.
func (f *framing) NetConn() net.Conn { return f.Conn }

// Read implements [net.Conn].
func (f *framing) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	f.count(b[:max(n, 0)])
	return n, err
}

// count counts the frames that come.
func (f *framing) count(b []byte) {
	for len(b) > 0 {
		if f.skip == 0 {
			k := copy(f.length[f.have:], b)
			b = b[k:]
			if f.have += k; f.have < frameHead {
				return
			}
			f.have, f.skip = 0, int(f.length[0])<<16|int(f.length[1])<<8|int(f.length[2])
		}
		k := min(f.skip, len(b))
		b = b[k:]
		if f.skip -= k; f.skip == 0 {
			f.came.Add(1)
		}
	}
}

// Write implements [net.Conn].
func (f *framing) Write(b []byte) (int, error) {
	f.follow(b)
	return f.Conn.Write(b)
}

func (f *framing) follow(b []byte) {
	for len(b) > 0 {
		if f.n < frameHead {
			k := copy(f.head[f.n:], b)
			b = b[k:]
			if f.n += k; f.n < frameHead {
				return
			}
			f.left, f.at = int(f.head[0])<<16|int(f.head[1])<<8|int(f.head[2]), 0
		}
		k := min(f.left, len(b))
		f.payload(b[:k])
		b = b[k:]
		if f.left -= k; f.left == 0 {
			f.frame()
			f.n = 0
		}
	}
}

// payload takes a part of a frame's payload. The server pads nothing.
func (f *framing) payload(b []byte) {
	switch http2.FrameType(f.head[3]) {
	case http2.FrameHeaders, http2.FrameContinuation:
		if f.fields != nil {
			if _, err := f.fields.Write(b); err != nil {
				f.fields = nil // the next ones could not be read
			}
		}
	case http2.FrameRSTStream, http2.FrameGoAway:
		f.at += copy(f.code[f.at:], b)
	}
}

// frame is at the end of a frame.
func (f *framing) frame() {
	switch http2.FrameType(f.head[3]) {
	case http2.FrameHeaders, http2.FrameContinuation:
		if http2.Flags(f.head[4])&http2.FlagHeadersEndHeaders == 0 {
			return
		}
		if f.fields != nil && f.fields.Close() != nil {
			f.fields = nil
		}
		if f.said >= 0 && f.answered[f.said].Add(-1) < 0 {
			f.answered[f.said].Store(0)
			f.note(itsAnswers[f.said].why)
		}
		f.said = -1
	case http2.FrameRSTStream:
		// STREAM_CLOSED is for what was on its way when the stream ended.
		if code := http2.ErrCode(binary.BigEndian.Uint32(f.code[:])); faulty(code) && code != http2.ErrCodeStreamClosed {
			f.note("a stream: " + code.String())
		}
	case http2.FrameGoAway:
		if code := http2.ErrCode(binary.BigEndian.Uint32(f.code[4:])); faulty(code) {
			f.note("the connection: " + code.String())
		}
	}
}

// faulty says that the device did what it must not; the others say that all is
// well, that nobody waits any more, or that the gateway has a fault.
func faulty(code http2.ErrCode) bool {
	switch code {
	case http2.ErrCodeNo, http2.ErrCodeInternal, http2.ErrCodeCancel, http2.ErrCodeConnect:
		return false
	}
	return true
}

func (f *framing) note(what string) {
	app := f.p.cfg.AppByAddr(f.conn.local.Addr())
	if app == nil {
		return
	}
	f.p.cfg.Session.Reject(session.Rejection{Peer: f.conn.peer, App: app, Decision: policy.NewDecision(policy.ReasonBadRequest,
		&policy.Fact{Name: "http2", Value: what, Wanted: "frames and fields as RFC 9113 has them"})})
}
