//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// tickBytes is what an app sends at a time: a number that grows by one, and
// when it was sent, in Unix nanoseconds.
const tickBytes = 16

// bulkBytes are several chunks of what splice moves at a time.
const bulkBytes = 512 << 10

// slow is how often an app sends while nobody looks.
const slow = 2 * time.Second

// apps are the company's, of every kind. They send ticks on whatever is open.
type apps struct {
	web http.Server
	tcp net.Listener
	udp *net.UDPConn
	Web string // host:port of the web server, which also takes /pace
	TCP string
	UDP string
	// bulk says of which TCP flows each tick is followed by bulkBytes of zeros.
	bulk    func(flow string) bool
	closing chan struct{}

	mu    sync.Mutex
	paces map[string]*pace // by the flow's name; guarded by mu
}

// pace is how often one flow's ticks are sent.
type pace struct {
	every atomic.Int64
	poke  chan struct{}
}

func startApps() (*apps, error) {
	a := &apps{paces: map[string]*pace{}, closing: make(chan struct{})}
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	if a.tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	if a.udp, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		return nil, err
	}
	_ = a.udp.SetReadBuffer(4 << 20)
	a.Web, a.TCP, a.UDP = web.Addr().String(), a.tcp.Addr().String(), a.udp.LocalAddr().String()
	mux := http.NewServeMux()
	mux.HandleFunc("/pace", a.setPace)
	mux.HandleFunc("/exchange", a.exchange)
	mux.HandleFunc("/websocket", a.websocket)
	a.web = http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = a.web.Serve(web) }()
	go a.serveTCP()
	go a.serveUDP()
	return a, nil
}

func (a *apps) close() {
	close(a.closing)
	_ = a.web.Close()
	_ = a.tcp.Close()
	_ = a.udp.Close()
}

func (a *apps) paceOf(flow string) *pace {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.paces[flow]
	if p == nil {
		p = &pace{poke: make(chan struct{}, 1)}
		p.every.Store(int64(slow))
		a.paces[flow] = p
	}
	return p
}

// setPace takes ?every=2ms&flow=NAME&flow=...
func (a *apps) setPace(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	every, err := time.ParseDuration(r.Form.Get("every"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, flow := range r.Form["flow"] {
		p := a.paceOf(flow)
		p.every.Store(int64(every))
		select {
		case p.poke <- struct{}{}:
		default:
		}
	}
}

// tick sends until send fails or gone is closed.
func (a *apps) tick(flow string, gone <-chan struct{}, send func([]byte) error) {
	p := a.paceOf(flow)
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.paces[flow] == p {
			delete(a.paces, flow)
		}
	}()
	size := tickBytes
	if a.bulk != nil && a.bulk(flow) {
		size += bulkBytes
	}
	b := make([]byte, size)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := uint64(0); ; n++ {
		select {
		case <-timer.C:
		case <-p.poke:
		case <-gone:
			return
		case <-a.closing:
			return
		}
		binary.BigEndian.PutUint64(b, n)
		binary.BigEndian.PutUint64(b[8:], uint64(time.Now().UnixNano()))
		if send(b) != nil {
			return
		}
		timer.Reset(time.Duration(p.every.Load()))
	}
}

func (a *apps) exchange(w http.ResponseWriter, r *http.Request) {
	out := http.NewResponseController(w)
	a.tick(r.FormValue("flow"), r.Context().Done(), func(b []byte) error {
		if _, err := w.Write(b); err != nil {
			return err
		}
		return out.Flush()
	})
}

func (a *apps) websocket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return
	}
	defer c.CloseNow()
	ctx := c.CloseRead(context.Background())
	a.tick(r.FormValue("flow"), ctx.Done(), func(b []byte) error { return c.Write(ctx, websocket.MessageBinary, b) })
}

func (a *apps) serveTCP() {
	for {
		c, err := a.tcp.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			in := bufio.NewReader(c)
			name, err := in.ReadString('\n')
			if err != nil {
				return
			}
			gone := make(chan struct{})
			go func() { defer close(gone); _, _ = in.ReadByte() }()
			a.tick(strings.TrimSpace(name), gone, func(b []byte) error { _, err := c.Write(b); return err })
		}()
	}
}

// serveUDP ticks to whoever sent a flow's name, until somebody else sends it.
func (a *apps) serveUDP() {
	buf := make([]byte, 2048)
	open := map[string]chan struct{}{}
	for {
		n, from, err := a.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		name := string(buf[:n])
		if old := open[name]; old != nil {
			close(old)
		}
		gone := make(chan struct{})
		open[name] = gone
		go a.tick(name, gone, func(b []byte) error {
			_, err := a.udp.WriteToUDPAddrPort(b, from)
			return err
		})
	}
}

// pacer sets the pace of flows at the apps.
type pacer struct{ web string }

func (p pacer) set(ctx context.Context, every time.Duration, flows []*flow) error {
	form := []string{"every=" + every.String()}
	for _, f := range flows {
		form = append(form, "flow="+f.name)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+p.web+"/pace", strings.NewReader(strings.Join(form, "&")))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("setting a pace: %s", res.Status)
	}
	return nil
}
