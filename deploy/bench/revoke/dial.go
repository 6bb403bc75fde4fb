//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// inbound is a connection that a laptop asks for, as the tunnel's stack hands
// it to the proxy.
type inbound struct {
	conn        net.Conn
	peer, local netip.AddrPort
}

func (i inbound) Peer() netip.AddrPort  { return i.peer }
func (i inbound) Local() netip.AddrPort { return i.local }
func (i inbound) Reset()                { end(i.conn) }
func (i inbound) Accept(context.Context) (net.Conn, error) {
	if c, ok := i.conn.(*net.TCPConn); ok {
		return c, nil
	}
	return resettable{i.conn}, nil
}

// resettable is the gateway's end of a connection in memory.
type resettable struct{ net.Conn }

// Reset aborts the connection: nothing is queued in it.
func (r resettable) Reset() { _ = r.Close() }

func end(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// tcp opens a TCP connection from the laptop to an app.
func (l *laptop) tcp(app string, to uint16) (net.Conn, error) {
	in := inbound{
		peer:  netip.AddrPortFrom(l.device.Addresses[0], uint16(l.ports.Add(1))),
		local: netip.AddrPortFrom(l.manager.AppAddresses(app)[0], to),
	}
	if !l.kernel {
		ours, theirs := net.Pipe()
		in.conn = theirs
		l.proxy.HandleTCP(in)
		return ours, nil
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	ours, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return nil, err
	}
	if in.conn, err = ln.Accept(); err != nil {
		return nil, err
	}
	l.proxy.HandleTCP(in)
	return ours, nil
}

func (l *laptop) tls(ctx context.Context, app, proto string) (*tls.Conn, error) {
	raw, err := l.tcp(app, 443)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, &tls.Config{RootCAs: l.roots, ServerName: app + ".test", NextProtos: []string{proto}})
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// dial opens a flow and reads its first tick. i is its number among the two of
// its kind.
func (l *laptop) dial(ctx context.Context, f *flow, i int) error {
	switch f.kind {
	case "udp":
		return l.dialUDP(f)
	case "h2":
		return l.dialH2(ctx, f, i)
	case "tcp":
		c, err := l.tcp(f.app, 7000)
		if err != nil {
			return err
		}
		go func() { _, _ = io.WriteString(c, f.name+"\n") }()
		return f.read(c, bufio.NewReaderSize(c, 256))
	}
	c, err := l.tls(ctx, f.app, "http/1.1")
	if err != nil {
		return err
	}
	upgrade := ""
	if f.kind == "websocket" {
		upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nOrigin: https://" + f.app + ".test\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	}
	path := map[string]string{"http": "exchange", "websocket": "websocket"}[f.kind]
	go func() {
		fmt.Fprintf(c, "GET /%s?flow=%s HTTP/1.1\r\nHost: %s.test\r\n%s\r\n", path, f.name, f.app, upgrade)
	}()
	in := bufio.NewReaderSize(c, 256)
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		return err
	}
	switch {
	case f.kind == "websocket" && res.StatusCode == http.StatusSwitchingProtocols:
		return f.read(c, frames{in, c})
	case f.kind == "http" && res.StatusCode == http.StatusOK:
		return f.read(c, res.Body)
	}
	return fmt.Errorf("%s was answered %s %s", path, res.Status, res.Header.Get("Portvakt-Reason"))
}

// h2Client is the HTTP/2 connection of a laptop's two streams.
type h2Client struct {
	*http.Client
	transport *http.Transport
}

func (l *laptop) dialH2(ctx context.Context, f *flow, i int) error {
	if i == 0 { // the other one ended with it
		tr := &http.Transport{
			ForceAttemptHTTP2:  true,
			DisableCompression: true,
			DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return l.tls(ctx, f.app, "h2")
			},
		}
		l.h2 = &h2Client{&http.Client{Transport: tr}, tr}
	}
	h2 := l.h2
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+f.app+".test/exchange?flow="+f.name, nil)
	if err != nil {
		cancel()
		return err
	}
	res, err := h2.Do(req)
	if err != nil {
		cancel()
		return err
	}
	if res.StatusCode != http.StatusOK || res.ProtoMajor != 2 {
		cancel()
		return fmt.Errorf("%s was answered %s %s", req.URL.Path, res.Proto, res.Status)
	}
	return f.read(closer(func() error { cancel(); h2.transport.CloseIdleConnections(); return nil }), res.Body)
}

type closer func() error

func (c closer) Close() error { return c() }

// frames are a WebSocket's payloads, of at most 125 bytes, in frames that are not
// masked (RFC 6455, 5.2). Pings are answered.
type frames struct {
	in  *bufio.Reader
	out io.Writer
}

func (f frames) Read(b []byte) (int, error) {
	for {
		var head [2]byte
		if _, err := io.ReadFull(f.in, head[:]); err != nil {
			return 0, err
		}
		size := int(head[1])
		if size > min(125, len(b)) {
			return 0, fmt.Errorf("a frame of %d bytes", size)
		}
		if _, err := io.ReadFull(f.in, b[:size]); err != nil {
			return 0, err
		}
		switch head[0] {
		case 0x82: // the whole of a binary message
			return size, nil
		case 0x89: // ping: pong, masked with zeros
			if _, err := f.out.Write(append([]byte{0x8a, 0x80 | byte(size), 0, 0, 0, 0}, b[:size]...)); err != nil {
				return 0, err
			}
		default:
			return 0, fmt.Errorf("a frame that begins with %x", head[0])
		}
	}
}

// read takes the first tick, and the others in a goroutine that ends with the
// flow.
func (f *flow) read(c io.Closer, r io.Reader) error {
	f.close = func() { _ = c.Close() }
	b := make([]byte, tickBytes)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	f.took(b)
	go func() {
		for {
			if _, err := io.ReadFull(r, b); err != nil {
				f.over(err)
				return
			}
			f.took(b)
		}
	}()
	return nil
}

const (
	ipHead  = 20
	udpHead = 8
)

// dialUDP sends the flow's name in a packet of the laptop's. It is open when
// the first tick has come.
func (l *laptop) dialUDP(f *flow) error {
	me := netip.AddrPortFrom(l.device.Addresses[0], uint16(l.ports.Add(1)))
	l.fleet.mu.Lock()
	l.fleet.udp[me] = f
	l.fleet.mu.Unlock()
	f.close = func() {
		l.fleet.mu.Lock()
		defer l.fleet.mu.Unlock()
		delete(l.fleet.udp, me)
	}
	if err := l.sendUDP(me, f); err != nil {
		return err
	}
	for deadline := time.Now().Add(answered); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if n, _, _ := f.state(); n > 0 {
			return nil
		}
	}
	return fmt.Errorf("no answer in %s", answered)
}

// answered is how long a call may take to be answered.
const answered = 2 * time.Second

// sendUDP sends an IPv4 packet (RFC 791) with a datagram that has no checksum
// (RFC 768).
func (l *laptop) sendUDP(me netip.AddrPort, f *flow) error {
	to := l.manager.AppAddresses(f.app)[0].As4()
	from := me.Addr().As4()
	b := make([]byte, ipHead+udpHead+len(f.name))
	b[0], b[8], b[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], from[:])
	copy(b[16:], to[:])
	var sum uint32
	for i := 0; i < ipHead; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(b[ipHead:], me.Port())
	binary.BigEndian.PutUint16(b[ipHead+2:], 5004)
	binary.BigEndian.PutUint16(b[ipHead+4:], uint16(udpHead+len(f.name)))
	copy(b[ipHead+udpHead:], f.name)
	l.relay.Take([][]byte{b})
	return nil
}

// take is the laptops' end of the tunnel.
func (f *fleet) take(packets [][]byte) int {
	for _, p := range packets {
		if len(p) < ipHead+udpHead+tickBytes || p[0] != 0x45 {
			continue
		}
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[16:20])), binary.BigEndian.Uint16(p[ipHead+2:]))
		f.mu.RLock()
		flow := f.udp[to]
		f.mu.RUnlock()
		if flow != nil {
			flow.took(p[ipHead+udpHead:])
		}
	}
	return len(packets)
}
