package proxy

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// pair is a TCP connection of the kernel's.
func pair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = c.Close(), s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// pumped is a pump between two connections and the far ends of both.
type pumped struct {
	in, out *net.TCPConn
	moved   atomic.Int64
	checks  atomic.Int64
	refuse  atomic.Bool
	done    chan error
}

var errCut = errors.New("cut")

func startPump(t testing.TB) *pumped {
	t.Helper()
	p := &pumped{done: make(chan error, 1)}
	var src, dst *net.TCPConn
	p.in, src = pair(t)
	dst, p.out = pair(t)
	check := func() error {
		p.checks.Add(1)
		if p.refuse.Load() {
			return errCut
		}
		return nil
	}
	go func() {
		_, err := pump(check, dst, src, &patience{within: time.Minute, over: func() {}}, &p.moved)
		p.done <- err
	}()
	return p
}

// TestPumpBulk: bulk and small chunks in turn arrive as they were sent.
func TestPumpBulk(t *testing.T) {
	p := startPump(t)
	data := make([]byte, 12<<20)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(data)
	go func() {
		for rest, i := data, 0; len(rest) > 0; i++ {
			n := min(len(rest), []int{1 << 20, 100, 40 << 10, 3 << 20, 1}[i%5])
			_, _ = p.in.Write(rest[:n])
			rest = rest[n:]
			if i%3 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		_ = p.in.CloseWrite()
	}()
	_ = p.out.SetDeadline(time.Now().Add(20 * time.Second))
	got, err := io.ReadAll(p.out)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
		t.Errorf("%d of %d bytes, %v", len(got), len(data), err)
	}
	if err := <-p.done; err != nil || p.moved.Load() != int64(len(data)) {
		t.Errorf("pump ended with %v, counted %d of %d", err, p.moved.Load(), len(data))
	}
	if least := int64(len(data) / spliceChunk); p.checks.Load() < least {
		t.Errorf("asked %d times for %d bytes, want at least once for each %d", p.checks.Load(), len(data), spliceChunk)
	}
}

// TestPumpAsksWhileItTrickles: what comes in drops is passed on drop by drop,
// and each is asked about, also after a bulk transfer.
func TestPumpAsksWhileItTrickles(t *testing.T) {
	p := startPump(t)
	bulk := make([]byte, 1<<20)
	go func() { _, _ = p.in.Write(bulk) }()
	_ = p.out.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(p.out, make([]byte, len(bulk))); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		before := p.checks.Load()
		drop := bytes.Repeat([]byte{byte(i)}, 10)
		_, _ = p.in.Write(drop)
		got := make([]byte, 10)
		if _, err := io.ReadFull(p.out, got); err != nil || !bytes.Equal(got, drop) {
			t.Fatalf("drop %d: %v, %v", i, got, err)
		}
		if p.checks.Load() == before {
			t.Fatalf("drop %d passed without a question", i)
		}
	}
	p.refuse.Store(true)
	_, _ = p.in.Write([]byte("too late"))
	if err := <-p.done; !errors.Is(err, errCut) {
		t.Errorf("pump ended with %v", err)
	}
}

// TestPumpCutInBulk: nothing that was taken after the cut is passed on.
func TestPumpCutInBulk(t *testing.T) {
	p := startPump(t)
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		b := make([]byte, 256<<10)
		for {
			if _, err := p.in.Write(b); err != nil {
				return
			}
		}
	}()
	_ = p.out.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.CopyN(io.Discard, p.out, 8<<20); err != nil {
		t.Fatal(err)
	}
	p.refuse.Store(true)
	drained := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, p.out); close(drained) }()
	if err := <-p.done; !errors.Is(err, errCut) {
		t.Errorf("pump ended with %v", err)
	}
	before := p.moved.Load()
	time.Sleep(20 * time.Millisecond)
	if p.moved.Load() != before {
		t.Error("bytes move after the cut")
	}
	_, _ = p.in.Close(), p.out.Close()
	<-drained
	<-stop
}

// TestPumpEndsWithItsEnds: a broken source is reading's fault, a broken
// destination is not.
func TestPumpEndsWithItsEnds(t *testing.T) {
	for name, breakIt := range map[string]func(*pumped){
		"source":      func(p *pumped) { _ = p.in.SetLinger(0); _ = p.in.Close() },
		"destination": func(p *pumped) { _ = p.out.SetLinger(0); _ = p.out.Close() },
	} {
		p := startPump(t)
		wrote := make(chan struct{})
		go func() {
			defer close(wrote)
			b := make([]byte, 1<<20)
			for {
				if _, err := p.in.Write(b); err != nil {
					return
				}
			}
		}()
		_, _ = io.CopyN(io.Discard, p.out, 4<<20)
		breakIt(p)
		drained := make(chan struct{})
		go func() { _, _ = io.Copy(io.Discard, p.out); close(drained) }()
		select {
		case err := <-p.done:
			if err == nil {
				t.Errorf("%s: pump ended without an error", name)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: pump goes on", name)
		}
		_, _ = p.in.Close(), p.out.Close()
		<-wrote
		<-drained
	}
}

func BenchmarkPump(b *testing.B) {
	for name, size := range map[string]int{"bulk": 1 << 20, "100 bytes": 100} {
		b.Run(name, func(b *testing.B) {
			p := startPump(b)
			buf, got := make([]byte, size), make([]byte, size)
			b.SetBytes(int64(size))
			for b.Loop() {
				go func() { _, _ = p.in.Write(buf) }()
				if _, err := io.ReadFull(p.out, got); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
