package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// What a bad laptop tries.
const (
	badMappings    = 50_000 // source ports of its datagrams
	badConnections = 10_000
	badStreams     = 64 // of the peer that stops reading
	firstBadPort   = 10_000
)

// Mischief is what was done.
type Mischief struct {
	Sent    int     `json:"sent"`    // packets, datagrams, connections or chunks
	Refused int     `json:"refused"` // connections
	Open    int     `json:"open"`    // connections at the end
	Seconds float64 `json:"seconds"` // since it was in force
}

// Misbehave is a laptop that does what it should not.
type Misbehave struct {
	Kind      string
	Rate      int            // packets per second; connections a tenth of it
	To, Voice netip.AddrPort // a TCP and a UDP app
}

// Run does it until ctx ends, at the stated rate. It calls begun when it is in
// force.
func (m Misbehave) Run(ctx context.Context, begun func()) (Mischief, error) {
	var at time.Time
	began := begun
	begun = func() { at = time.Now(); began() }
	var done Mischief
	var err error
	switch m.Kind {
	case "mappings", "syns", "malformed":
		done, err = m.packets(ctx, begun)
	case "outer":
		done, err = m.datagrams(ctx, begun)
	case "idle":
		done, err = m.idle(ctx, begun)
	case "unread":
		done, err = m.streams(ctx, begun)
	default:
		err = fmt.Errorf("there is no misbehaviour %q", m.Kind)
	}
	if !at.IsZero() {
		done.Seconds = time.Since(at).Seconds()
	}
	return done, err
}

// pace calls do for numbers from 0, that often in a second, until ctx ends.
func pace(ctx context.Context, rate int, do func(i int) error) (n int, err error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	last, owed := time.Now(), 0.0
	for {
		select {
		case <-ctx.Done():
			return n, nil
		case now := <-tick.C:
			// What a busy machine kept from being sent is not made up for at once.
			owed = min(owed+now.Sub(last).Seconds()*float64(rate), max(1, float64(rate)/50))
			last = now
		}
		for ; owed >= 1; owed-- {
			if err := do(n); err != nil {
				return n, err
			}
			n++
		}
	}
}

// packets writes packets of its own making to the agent's interface.
func (m Misbehave) packets(ctx context.Context, begun func()) (Mischief, error) {
	to := m.Voice
	if m.Kind != "mappings" {
		to = m.To
	}
	own, dev, err := routeTo(to)
	if err != nil {
		return Mischief{}, err
	}
	s, err := openSender(dev)
	if err != nil {
		return Mischief{}, err
	}
	defer s.Close()
	begun()
	bad := malformed(own, to)
	n, err := pace(ctx, m.Rate, func(i int) error {
		from := netip.AddrPortFrom(own, firstBadPort+uint16(i%badMappings))
		switch m.Kind {
		case "mappings":
			return s.send(datagram(from, to, []byte("a mapping")))
		case "syns":
			return s.send(syn(from, to))
		}
		return s.send(bad[i%len(bad)])
	})
	return Mischief{Sent: n}, err
}

// datagrams writes what the agent could have sent, changed and again.
func (m Misbehave) datagrams(ctx context.Context, begun func()) (Mischief, error) {
	frames, s, err := record(ctx, m.Voice)
	if err != nil {
		return Mischief{}, err
	}
	defer s.Close()
	begun()
	var buf [1600]byte
	n, err := pace(ctx, m.Rate, func(i int) error {
		return s.send(spoil(buf[:copy(buf[:], frames[i%len(frames)])], i/len(frames)))
	})
	return Mischief{Sent: n}, err
}

// outerHead is what is before a WireGuard message in a frame: Ethernet, IPv4
// without options, UDP.
const outerHead = 14 + 20 + 8

// spoil changes a recorded frame by one of some ways; it returns what to send.
func spoil(f []byte, way int) []byte {
	binary.BigEndian.PutUint16(f[outerHead-2:], 0) // no checksum, RFC 768
	message := f[outerHead:]
	switch way % 6 {
	case 0: // as it was
	case 1:
		message[rand.IntN(len(message))] ^= 1 << rand.IntN(8)
	case 2: // a counter to come, sealed by nobody
		binary.LittleEndian.PutUint64(message[8:], 1<<40+rand.Uint64N(1<<20))
	case 3: // another's session
		binary.LittleEndian.PutUint32(message[4:], rand.Uint32())
	case 4: // a handshake message of the wrong length
		message[0] = 1 + byte(rand.IntN(3))
	case 5: // short of everything
		n := 1 + rand.IntN(31)
		f = f[:outerHead+n]
		binary.BigEndian.PutUint16(f[outerHead-4:], uint16(8+n))
		ip := f[14:34]
		binary.BigEndian.PutUint16(ip[2:], uint16(28+n))
		binary.BigEndian.PutUint16(ip[10:], 0)
		binary.BigEndian.PutUint16(ip[10:], sum(ip))
	}
	return f
}

// idle opens connections and keeps them, and goes on asking for those it was
// refused.
func (m Misbehave) idle(ctx context.Context, begun func()) (Mischief, error) {
	var mu sync.Mutex
	var open []net.Conn
	var refused, inFlight atomic.Int64
	var all sync.WaitGroup
	begun()
	tried, err := pace(ctx, m.Rate/10, func(int) error {
		mu.Lock()
		enough := len(open)+int(inFlight.Load()) >= badConnections
		mu.Unlock()
		if enough || inFlight.Load() > 1000 {
			return nil
		}
		inFlight.Add(1)
		all.Go(func() {
			defer inFlight.Add(-1)
			c, err := (&net.Dialer{Timeout: dialLimit}).DialContext(ctx, "tcp", m.To.String())
			if err != nil {
				refused.Add(1)
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
		})
		return nil
	})
	all.Wait()
	for _, c := range open {
		c.Close()
	}
	return Mischief{Sent: tried, Refused: int(refused.Load()), Open: len(open)}, err
}

// streams lets the app send to this laptop, until whoever starts this program
// makes the agent stand still.
func (m Misbehave) streams(ctx context.Context, begun func()) (Mischief, error) {
	const chunk = 16 << 10
	var sent atomic.Int64
	var all sync.WaitGroup
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
		all.Wait()
	}()
	for range badStreams {
		c, err := (&net.Dialer{Timeout: dialLimit}).DialContext(ctx, "tcp", m.To.String())
		if err != nil {
			return Mischief{}, fmt.Errorf("opening a stream: %w", err)
		}
		conns = append(conns, c)
		all.Go(func() { _, _ = io.Copy(io.Discard, c) })
		all.Go(func() {
			_, _ = pace(ctx, m.Rate/1000, func(int) error {
				_, err := c.Write(make([]byte, chunk))
				sent.Add(1)
				return err
			})
		})
	}
	if sleep(ctx, 500*time.Millisecond) {
		begun()
	}
	<-ctx.Done()
	return Mischief{Sent: int(sent.Load()), Open: len(conns)}, nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// routeTo is the own address and the interface towards an app.
func routeTo(to netip.AddrPort) (netip.Addr, *net.Interface, error) {
	c, err := net.Dial("udp4", to.String())
	if err != nil {
		return netip.Addr{}, nil, err
	}
	defer c.Close()
	own := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	all, err := net.Interfaces()
	if err != nil {
		return own, nil, err
	}
	for i := range all {
		addrs, err := all[i].Addrs()
		if err != nil {
			return own, nil, err
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == own {
				return own, &all[i], nil
			}
		}
	}
	return own, nil, errors.New("no interface has the address of the route")
}
