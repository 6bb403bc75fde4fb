package overlay_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/portvakt/portvakt/internal/overlay"
)

// FuzzInbound writes packets into a gateway's stack without a filter in front.
// None may stop it, and at the end its own address still answers.
func FuzzInbound(f *testing.F) {
	for i := range gateway {
		f.Add(icmpEcho(device[i], gateway[i]))
		f.Add(icmpEcho(device[i], app[i]))
	}
	syn := make([]byte, 40)
	syn[0], syn[3], syn[8], syn[9] = 0x45, 40, 64, 6
	copy(syn[12:], device[0].AsSlice())
	copy(syn[16:], app[0].AsSlice())
	binary.BigEndian.PutUint16(syn[10:], checksum(syn[:20]))
	binary.BigEndian.PutUint16(syn[20:], 40000)
	binary.BigEndian.PutUint16(syn[22:], 443)
	syn[32], syn[33] = 5<<4, 2
	pseudo := append(append([]byte{}, syn[12:20]...), 0, 6, 0, 20)
	binary.BigEndian.PutUint16(syn[36:], checksum(append(pseudo, syn[20:]...)))
	f.Add(syn)
	// News of a smaller path for a connection there is not.
	news := append(icmpEcho(device[0], gateway[0])[:28:28], syn...)
	news[3], news[20], news[21], news[26], news[27] = 68, 3, 4, 0x05, 0x14
	news[10], news[11], news[22], news[23] = 0, 0, 0, 0
	binary.BigEndian.PutUint16(news[10:], checksum(news[:20]))
	binary.BigEndian.PutUint16(news[22:], checksum(news[20:]))
	f.Add(news)

	s, err := overlay.New(overlay.Options{
		Addresses: gateway, Gateway: true,
		TCP: func(r *overlay.TCPRequest) { r.Reset() },
	})
	if err != nil {
		f.Fatal(err)
	}
	answered, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		buf, sizes := [][]byte{make([]byte, 65536)}, []int{0}
		for {
			if _, err := s.Device().Read(buf, sizes, 0); err != nil {
				return
			}
			if b := buf[0][:sizes[0]]; b[0] == 0x45 && b[9] == 1 && b[20] == 0 {
				select {
				case answered <- struct{}{}:
				default:
				}
			}
		}
	}()
	f.Cleanup(func() {
		time.Sleep(10 * time.Millisecond) // answers to the fuzzer's own
		select {
		case <-answered:
		default:
		}
		_, _ = s.Device().Write([][]byte{icmpEcho(device[0], gateway[0])}, 0)
		select {
		case <-answered:
		case <-time.After(3 * time.Second):
			f.Error("the stack no longer answers")
		}
		_ = s.Close()
		<-done
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := s.Device().Write([][]byte{b}, 0); err != nil {
			t.Fatal(err)
		}
	})
}
