package tunnel_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/gateway/tunnel"
	"github.com/portvakt/portvakt/internal/overlay"
	"github.com/portvakt/portvakt/internal/pathsize"
)

// shortRoad loses what is longer than it takes on the way to the device.
type shortRoad struct {
	tun.Device
	most, longest atomic.Int64 // bytes; most is 0 for any
}

func (d *shortRoad) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		n := int64(len(b) - offset)
		d.longest.Store(max(d.longest.Load(), n))
		if most := d.most.Load(); most != 0 && n > most {
			continue
		}
		if _, err := d.Device.Write([][]byte{b}, offset); err != nil {
			return 0, err
		}
	}
	return len(bufs), nil
}

// A device that says that its path takes less gets nothing longer of what is
// open, in either mode; its neighbours do, and so does it when it says so.
func TestAPathThatTakesLess(t *testing.T) {
	for _, mode := range []tunnel.Mode{tunnel.Userspace, tunnel.TUN} {
		t.Run(string(mode), func(t *testing.T) {
			if mode == tunnel.TUN {
				needTUN(t)
			}
			priv, _ := keyPair()
			in := startMode(t, mode, "127.0.0.1:0", priv)
			var roads [2]*shortRoad
			var devices [2]*client
			for i := range roads {
				c := newClient()
				in.admit(t, c, i)
				addrs := inner(i)
				st, err := overlay.New(overlay.Options{Addresses: addrs[:]})
				if err != nil {
					t.Fatal(err)
				}
				roads[i], devices[i], c.stack = &shortRoad{Device: st.Device()}, c, st
				c.up(t, in, roads[i], in.addr())
			}
			var streams [2][2]io.ReadWriteCloser
			for i, c := range devices {
				for j, a := range app {
					nc := c.mustDial(t, at(a, 443))
					_ = nc.SetDeadline(time.Now().Add(90 * time.Second))
					roundTrip(t, nc)
					_ = nc.SetDeadline(time.Now().Add(90 * time.Second))
					streams[i][j] = nc
					defer nc.Close()
				}
			}
			bulk := func(i int) {
				t.Helper()
				data := make([]byte, 300<<10)
				_, _ = rand.NewChaCha8([32]byte{3}).Read(data)
				for j, s := range streams[i] {
					go func() { _, _ = s.Write(data) }()
					got := make([]byte, len(data))
					if n, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, data) {
						t.Fatalf("device %d through %v: %d of %d bytes, %v", i, app[j], n, len(data), err)
					}
				}
			}
			say := func(i, size int) {
				t.Helper()
				b := make([]byte, 64)
				b[0], b[8], b[9], b[20] = 0x45, 64, 1, 8
				binary.BigEndian.PutUint16(b[2:], 64)
				own, gateway := inner(i)[0].As4(), gatewayAddrs[0].As4()
				copy(b[12:], own[:])
				copy(b[16:], gateway[:])
				pathsize.Note(b, size)
				binary.BigEndian.PutUint16(b[10:], sum(b[:20]))
				binary.BigEndian.PutUint16(b[22:], sum(b[20:]))
				if devices[i].stack.Inject([][]byte{b}) != 1 {
					t.Fatal("the stack did not take a packet")
				}
			}
			bulk(0)
			bulk(1)
			say(0, 1216)
			roads[0].most.Store(1216)
			roads[1].longest.Store(0)
			bulk(0)
			bulk(1)
			if n := roads[1].longest.Load(); n <= 1216 {
				t.Errorf("the neighbour gets packets of %d bytes", n)
			}
			say(0, 1280)
			roads[0].most.Store(0)
			for end := time.Now().Add(30 * time.Second); ; {
				roads[0].longest.Store(0)
				if bulk(0); roads[0].longest.Load() > 1216 {
					break
				}
				if time.Now().After(end) {
					t.Fatal("its packets stay short")
				}
			}
		})
	}
}
