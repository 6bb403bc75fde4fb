package http1

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
)

// response is the answer to one request, an http.ResponseWriter whose methods
// [http.ResponseController] finds. What is small leaves in one write, and no
// later than the handler's return or Flush.
type response struct {
	c      *served
	header http.Header // used again by the next request

	buf *[]byte // of a sync.Pool; holds what was not sent yet
	n   int     // how much

	gather Gatherer // nil where every write is as good as another

	status   int // 0 until there is one
	state    state
	length   int64 // declared; -1 for none
	written  int64 // bytes of the body
	tail     []byte
	trailers []string // announced names
	close    bool     // nothing follows on the connection
	err      error    // of the connection; nothing is sent any more

	deadline bool // the handler set one for reading

	// sending orders what is written while the handler may be writing too: 100
	// Continue, which whoever reads the body asks for.
	sending sync.Mutex
	invite  atomic.Bool // the other end waits for 100 Continue
	expects bool        // it did when the request came
}

// state is how far the head of an answer is, and how the body is framed.
type state int

const (
	unsaid   state = iota
	open           // the head lacks how the body is framed
	plain          // bytes as they are
	chunks         // RFC 9112, 7.1
	mute           // the answer has no body, whatever is written
	done           // all of it was sent, or could not be
	hijacked       // the connection is another's
)

// mostTail is how much of a body of unknown length waits to become one of known
// length.
const mostTail = 2 << 10

var errFinished = errors.New("http1: the answer is complete")

func (w *response) begin(close, invite bool) {
	clear(w.header)
	w.status, w.state, w.length, w.written, w.close, w.err, w.deadline = 0, unsaid, -1, 0, close, nil, false
	w.tail, w.trailers = w.tail[:0], w.trailers[:0]
	w.invite.Store(invite)
	w.expects = invite
}

// Header implements http.ResponseWriter.
func (w *response) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter. An answer before the real one
// (1xx) is sent at once.
func (w *response) WriteHeader(status int) {
	switch {
	case w.state != unsaid:
		return
	case status == http.StatusContinue:
		w.sayContinue()
		return
	case status < 200 && status != http.StatusSwitchingProtocols:
		if w.c.req.http.ProtoMinor == 0 {
			return // RFC 9110, 15.2
		}
		w.sending.Lock()
		defer w.sending.Unlock()
		w.statusLine(status)
		w.fields(true)
		w.text("\r\n")
		w.send()
		return
	}
	w.decline()
	w.status = status
	if v := w.header["Content-Length"]; len(v) == 1 {
		if n, ok := decimal(v[0]); ok {
			w.length = n
		}
	}
	for _, v := range w.header["Connection"] {
		w.close = w.close || listed(v, "close")
	}
	bodyless := status < 200 || status == http.StatusNoContent || status == http.StatusNotModified
	if bodyless {
		w.length = -1
	}
	w.statusLine(status)
	w.fields(false)
	switch {
	case bodyless || w.c.req.http.Method == http.MethodHead:
		w.frame(mute)
	case w.length >= 0:
		w.frame(plain)
	default:
		w.state = open
	}
}

// decline makes an end of waiting for a body that nobody asked for: whether it
// comes after all is not known, so nothing can follow it (RFC 9110, 10.1.1).
// A 100 Continue that is just being written is waited for: it must not end up
// inside the answer.
func (w *response) decline() {
	if w.expects {
		w.sending.Lock()
		if w.invite.Swap(false) {
			w.close = true
		}
		w.sending.Unlock()
	}
}

// sayContinue asks for the body (RFC 9110, 15.2.1), unless the answer has begun.
func (w *response) sayContinue() {
	if w.invite.Load() {
		w.sending.Lock()
		defer w.sending.Unlock()
		if w.invite.Swap(false) {
			_, _ = w.c.nc.Write([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
		}
	}
}

func (w *response) statusLine(status int) {
	switch {
	case w.c.req.http.ProtoMinor == 0:
		w.text("HTTP/1.0 ")
	case status == http.StatusOK:
		w.text("HTTP/1.1 200 OK\r\n")
		return
	default:
		w.text("HTTP/1.1 ")
	}
	var b [4]byte
	w.bytes(strconv.AppendInt(b[:0], int64(status), 10))
	w.text(" ")
	if text := http.StatusText(status); text != "" {
		w.text(text)
	} else {
		w.text("status code ")
		w.bytes(strconv.AppendInt(b[:0], int64(status), 10))
	}
	w.text("\r\n")
}

// fields writes the header, but for what is about the connection and the
// framing.
func (w *response) fields(interim bool) {
	date := interim
	for name, values := range w.header {
		switch name {
		case "Connection", "Transfer-Encoding", "Keep-Alive":
			continue
		case "Content-Length":
			if !interim && w.length >= 0 {
				w.field(name, values[0])
			}
			continue
		case "Date":
			date = true
		case "Trailer":
			for _, v := range values {
				for name := range strings.SplitSeq(v, ",") {
					if name = http.CanonicalHeaderKey(trim(name)); httpguts.ValidTrailerHeader(name) {
						w.trailers = append(w.trailers, name)
					}
				}
			}
		}
		if !isToken(name) { // http.TrailerPrefix holds a colon
			continue
		}
		for _, v := range values {
			w.field(name, v)
		}
	}
	if !date {
		w.field("Date", httpDate())
	}
}

func (w *response) field(name, value string) {
	if strings.IndexByte(value, '\n') >= 0 || strings.IndexByte(value, '\r') >= 0 {
		value = strings.NewReplacer("\n", " ", "\r", " ").Replace(value)
	}
	w.text(name)
	w.text(": ")
	w.text(value)
	w.text("\r\n")
}

// frame ends the head.
func (w *response) frame(s state) {
	if w.c.srv.closing.Load() {
		w.close = true
	}
	if w.state = s; s == chunks {
		w.text("Transfer-Encoding: chunked\r\n")
	}
	if w.close && w.c.req.http.ProtoMinor > 0 {
		w.text("Connection: close\r\n")
	}
	w.text("\r\n")
}

// settle frames a body whose length nobody knows.
func (w *response) settle() {
	if w.c.req.http.ProtoMinor == 0 {
		w.close = true // which is how it ends
		w.frame(plain)
	} else {
		w.frame(chunks)
	}
	if len(w.tail) > 0 {
		w.body(w.tail)
	}
}

// Write implements http.ResponseWriter.
func (w *response) Write(b []byte) (int, error) {
	switch w.state {
	case unsaid:
		w.WriteHeader(http.StatusOK)
	case hijacked:
		return 0, http.ErrHijacked
	case done:
		return 0, errFinished
	}
	if len(b) == 0 {
		return 0, w.err
	}
	if w.length >= 0 && w.written+int64(len(b)) > w.length {
		w.close = true
		return 0, http.ErrContentLength
	}
	w.written += int64(len(b))
	switch {
	case w.state == mute:
		if w.status < 200 || w.status == http.StatusNoContent || w.status == http.StatusNotModified {
			return 0, http.ErrBodyNotAllowed
		}
		return len(b), nil
	case w.state == open && len(w.tail)+len(b) <= mostTail:
		w.tail = append(w.tail, b...)
		return len(b), nil
	case w.state == open:
		w.settle()
	}
	w.body(b)
	if w.err != nil {
		return 0, w.err
	}
	return len(b), nil
}

// body writes a piece of the body.
func (w *response) body(b []byte) {
	if w.state != chunks {
		w.bytes(b)
		return
	}
	var size [20]byte
	w.bytes(append(strconv.AppendInt(size[:0], int64(len(b)), 16), "\r\n"...))
	w.bytes(b)
	w.text("\r\n")
}

// FlushError sends what is there, for [http.ResponseController].
func (w *response) FlushError() error {
	switch w.state {
	case unsaid:
		w.WriteHeader(http.StatusOK)
	case hijacked:
		return http.ErrHijacked
	case done:
		return w.err
	}
	if w.state == open {
		w.settle()
	}
	w.send()
	return w.err
}

// Flush implements http.Flusher.
func (w *response) Flush() { _ = w.FlushError() }

// EnableFullDuplex is for [http.ResponseController]: it is always so.
func (w *response) EnableFullDuplex() error { return nil }

// SetReadDeadline is for [http.ResponseController]. It lasts as long as the
// request.
func (w *response) SetReadDeadline(t time.Time) error {
	w.deadline = true
	return w.c.nc.SetReadDeadline(t)
}

// OnGone has fn called once if the other end goes away before the handler
// returns, or the connection is closed; at once if it has gone already. It costs
// less than [context.AfterFunc] of the request's context.
func (w *response) OnGone(fn func()) {
	w.c.mu.Lock()
	w.c.onGone = fn
	departed := w.c.departed
	w.c.mu.Unlock()
	if departed {
		fn()
	}
}

// Finish completes the answer and returns once the connection has taken all of
// it: a handler that ends what guards its answer does so afterwards. What is
// written later is lost. Without Finish the same happens when the handler has
// returned.
func (w *response) Finish() error {
	if w.state == hijacked {
		return nil
	}
	w.c.takeBack()
	w.end()
	return w.err
}

// end completes the answer, unless it is, and sends it. It reports whether
// another may follow.
func (w *response) end() bool {
	if w.state == unsaid {
		w.WriteHeader(http.StatusOK)
	}
	if w.state == open {
		if w.unannounced() || len(w.trailers) > 0 {
			w.settle()
		} else {
			w.length = w.written
			w.text("Content-Length: ")
			var b [20]byte
			w.bytes(append(strconv.AppendInt(b[:0], w.length, 10), "\r\n"...))
			w.frame(plain)
			w.bytes(w.tail)
		}
	}
	switch w.state {
	case chunks:
		w.text("0\r\n")
		w.trail()
		w.text("\r\n")
	case plain:
		if w.length >= 0 && w.written < w.length {
			w.close = true // RFC 9112, 8: the other end sees that a part is missing
		}
	}
	w.send()
	w.state = done
	return !w.close && w.err == nil
}

func (w *response) unannounced() bool {
	for name := range w.header {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			return true
		}
	}
	return false
}

// trail writes the trailers, announced and not.
func (w *response) trail() {
	for _, name := range w.trailers {
		for _, v := range w.header[name] {
			w.field(name, v)
		}
	}
	for name, values := range w.header {
		if name, ok := strings.CutPrefix(name, http.TrailerPrefix); ok && httpguts.ValidTrailerHeader(name) && isToken(name) {
			for _, v := range values {
				w.field(name, v)
			}
		}
	}
}

func (w *response) text(s string) {
	if w.buf == nil {
		w.buf = small.Get().(*[]byte)
	}
	for {
		n := copy((*w.buf)[w.n:], s)
		if w.n += n; n == len(s) {
			return
		}
		s = s[n:]
		w.write((*w.buf)[:w.n])
		w.n = 0
	}
}

// bytes is text for what may be large, and then goes by without a copy.
func (w *response) bytes(b []byte) {
	if w.buf == nil {
		w.buf = small.Get().(*[]byte)
	}
	for len(b) > 0 {
		if w.n == 0 && len(b) >= len(*w.buf) {
			w.write(b)
			return
		}
		n := copy((*w.buf)[w.n:], b)
		b = b[n:]
		if w.n += n; w.n == len(*w.buf) && len(b) > 0 {
			w.write(*w.buf)
			w.n = 0
		}
	}
}

func (w *response) write(b []byte) {
	if w.err != nil {
		return
	}
	if w.gather == nil || len(b) <= oneRecord {
		_, w.err = w.c.nc.Write(b)
		return
	}
	w.gather.Gather()
	_, w.err = w.c.nc.Write(b)
	if err := w.gather.Send(); w.err == nil {
		w.err = err
	}
}

// send writes what is there and gives the buffer back.
func (w *response) send() {
	if w.n > 0 {
		w.write((*w.buf)[:w.n])
	}
	w.drop()
}

func (w *response) drop() {
	if w.buf != nil {
		small.Put(w.buf)
		w.buf, w.n = nil, 0
	}
}

// oneRecord is the most that TLS writes at once (RFC 8446, 5.1).
const oneRecord = 16 << 10

// Gatherer is a connection under TLS that can put what it is given together:
// what is written between Gather and Send leaves with Send, or before when it
// is much. Answers that are several TLS records are then one write.
type Gatherer interface {
	Gather()
	Send() error
}

type dated struct {
	second int64
	text   string
}

var today atomic.Pointer[dated]

// httpDate is the time as RFC 9110, 5.6.7 writes it.
func httpDate() string {
	now := time.Now()
	if d := today.Load(); d != nil && d.second == now.Unix() {
		return d.text
	}
	d := &dated{now.Unix(), now.UTC().Format(http.TimeFormat)}
	today.Store(d)
	return d.text
}
