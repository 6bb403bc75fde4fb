package hosttun

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/portvakt/portvakt/internal/ipsum"
)

// halfOpen counts the kernel's half-open connections.
func halfOpen(t *testing.T, s *Stack) (n int) {
	t.Helper()
	if err := s.ns.do(func() error {
		table, err := os.ReadFile("/proc/thread-self/net/tcp")
		for line := range bytes.Lines(table) {
			if f := bytes.Fields(line); len(f) > 3 && string(f[3]) == "03" { // TCP_SYN_RECV
				n++
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// What an owner gives up takes no place in the kernel either, and the device may
// ask again from the same port.
func TestGivenUp(t *testing.T) {
	const devicePorts = 50
	given := make(chan struct{}, devicePorts)
	begun := false
	w := start(t, passing(func(r *TCPRequest) {
		wait := 10 * time.Millisecond
		if r.Peer().Port() == 20000 && begun {
			wait = time.Minute
		}
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		if c, err := r.Accept(ctx); err == nil {
			_ = c.Close()
		} else {
			given <- struct{}{}
		}
	}))
	for i := range uint16(devicePorts) {
		w.send(t, segment(at(laptop, 20000+i), at(app, 443), flagSYN, 100, 0))
		<-given
	}
	if n := halfOpen(t, w.s); n != 0 {
		t.Errorf("%d connections are half open in the kernel", n)
	}
	for w.next(100*time.Millisecond) != nil { // answers and resets
	}
	begun = true
	w.send(t, segment(at(laptop, 20000), at(app, 443), flagSYN, 5000000, 0))
	got := w.next(5 * time.Second)
	if got == nil || got[33] != flagSYN|flagACK || binary.BigEndian.Uint32(got[28:]) != 5000001 {
		t.Fatalf("the same port again is answered with %x", got)
	}
	w.send(t, segment(at(laptop, 20000), at(app, 443), flagACK, 5000001, binary.BigEndian.Uint32(got[24:])+1))
}

// A reset takes back the SYN it is of, in both families.
func TestResetOf(t *testing.T) {
	four := segment(at(laptop, 40000), at(app, 443), flagSYN, 0xffffffff, 0)
	six := append([]byte{0x60, 0, 0, 0, 0, 20, 6, 64}, netip.MustParseAddr("fd00::1").AsSlice()...)
	six = append(append(six, netip.MustParseAddr("fd00::2").AsSlice()...), four[header4:]...)
	for header, syn := range map[int][]byte{header4: four, header6: six} {
		p := resetOf(append(make([]byte, headroom), syn...))[headroom:]
		if !ipsum.TCP(p, header) || p[header+13] != flagRST || binary.BigEndian.Uint32(p[header+4:]) != 0 || !bytes.Equal(p[:header+4], syn[:header+4]) {
			t.Errorf("the reset of %x is %x", syn, p)
		}
	}
}
