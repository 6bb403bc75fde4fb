package proxy

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/gateway/frames"
)

// webSocket is a device's end of a WebSocket that the app has accepted. The
// frames pass through as they are; it reads their headers, both ways, lets none
// pass that is malformed or of a message that is too large, and puts pings of
// its own between those of the app, so that a device that is gone is found. The
// answers to them go to the app as well, which has no need of them (RFC 6455,
// 5.5.3).
type webSocket struct {
	net.Conn
	x     *exchange
	every time.Duration // between two pings to a device that says nothing

	fromDevice *frames.Reader // of the goroutine in Read
	heard      atomic.Bool    // since the last tick: the device said something,
	moved      atomic.Bool    // it took something

	writing  sync.Mutex // while something goes to the device; guards what follows
	toDevice *frames.Reader
	refused  bool // nothing goes there any more (RFC 6455, 5.5.1)

	ticking sync.Mutex // while a tick runs; guards what follows
	timer   *time.Timer
	silent  int // ticks without a sign of the device
	over    bool
}

const (
	// missed is how many pings in a row may stay without any word from a device.
	missed = 2
	// pingWait bounds the writing of a ping or of a close frame.
	pingWait = 5 * time.Second
)

// Hijack is for the upgrade to a WebSocket: what is written to the connection
// from then on are the app's frames.
func (c *counted) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, rw, err := http.NewResponseController(c.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	ws := &webSocket{
		Conn: nc, x: c.x, every: c.x.ping,
		fromDevice: frames.NewReader(true, c.x.deflate, c.x.message), toDevice: frames.NewReader(false, c.x.deflate, c.x.message),
	}
	ws.ticking.Lock()
	defer ws.ticking.Unlock()
	ws.timer = time.AfterFunc(ws.every, ws.tick)
	return ws, rw, nil
}

// Read returns what the device sent, as far as it may reach the app.
func (ws *webSocket) Read(b []byte) (int, error) {
	n, err := ws.Conn.Read(b)
	if n > 0 {
		ws.heard.Store(true)
	}
	n, bad := ws.fromDevice.Read(b[:n])
	if bad != nil {
		ws.writing.Lock()
		defer ws.writing.Unlock()
		ws.refuse(bad, ws.toDevice.Between())
		return n, bad
	}
	return n, err
}

// Write sends the device what the app sent, as far as it may reach it.
func (ws *webSocket) Write(b []byte) (int, error) {
	ws.writing.Lock()
	defer ws.writing.Unlock()
	if ws.refused {
		return 0, net.ErrClosed
	}
	n, bad := ws.toDevice.Read(b)
	if n > 0 {
		var err error
		if n, err = ws.Conn.Write(b[:n]); err != nil {
			return n, err
		}
		ws.moved.Store(true)
	}
	if bad != nil {
		ws.refuse(bad, ws.toDevice.Whole())
	}
	return n, bad
}

// refuse says why the WebSocket ends, to the device too where a frame may
// begin. writing is held.
func (ws *webSocket) refuse(bad error, between bool) {
	outcome, code := outcomeFrames, uint16(frames.CloseProtocol)
	if errors.Is(bad, frames.ErrTooLarge) {
		outcome, code = outcomeTooLarge, frames.CloseTooBig
	}
	ws.refused = true
	ws.x.note(http.StatusSwitchingProtocols, outcome)
	if between && ws.x.flow.Check() == nil {
		_ = ws.SetWriteDeadline(time.Now().Add(pingWait))
		_, _ = ws.Conn.Write(frames.Close(code))
	}
}

// Close implements io.Closer. No tick runs after it.
func (ws *webSocket) Close() error {
	err := ws.Conn.Close() // and so does a ping that is being written
	ws.ticking.Lock()
	defer ws.ticking.Unlock()
	ws.over = true
	ws.timer.Stop()
	return err
}

// tick asks a device that said nothing for a while whether it is there, and ends
// the WebSocket when it was asked often enough.
func (ws *webSocket) tick() {
	ws.ticking.Lock()
	defer ws.ticking.Unlock()
	if ws.over {
		return
	}
	moved := ws.moved.Swap(false)
	if ws.heard.Swap(false) {
		ws.silent = 0
	} else if ws.silent++; ws.silent > missed || !ws.ask(moved) {
		ws.x.note(http.StatusSwitchingProtocols, outcomeSilent)
		ws.x.conn.reset()
		return
	}
	ws.timer.Reset(ws.every)
}

// ask sends a ping. It reports false when that cannot be done any more. Within a
// large message it waits, as long as the device takes more of it.
func (ws *webSocket) ask(moved bool) bool {
	if !ws.writing.TryLock() {
		if moved {
			ws.silent--
		}
		return true
	}
	defer ws.writing.Unlock()
	if ws.refused {
		return false
	}
	if !ws.toDevice.Between() {
		if moved {
			ws.silent--
		}
		return true
	}
	if ws.x.flow.Check() != nil {
		return false
	}
	_ = ws.SetWriteDeadline(time.Now().Add(pingWait))
	defer func() { _ = ws.SetWriteDeadline(time.Time{}) }()
	_, err := ws.Conn.Write(frames.Ping())
	return err == nil
}

// compressed says that an app agreed to permessage-deflate (RFC 7692).
func compressed(h http.Header) bool {
	for _, v := range h["Sec-Websocket-Extensions"] {
		for extension := range strings.SplitSeq(v, ",") {
			if name, _, _ := strings.Cut(extension, ";"); strings.EqualFold(strings.TrimSpace(name), "permessage-deflate") {
				return true
			}
		}
	}
	return false
}
