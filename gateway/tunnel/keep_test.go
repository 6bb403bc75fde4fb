package tunnel

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// A gateway that is killed must know where a device is that only just registered:
// its first handshake waits for no batch, however long the write of its initiation
// took. Later ones and moves do, and so does the next device's initiation.
func TestFirstHandshakeIsKeptAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const took = 30 * time.Millisecond
		begun := time.Now()
		type write struct {
			at   time.Duration
			kept []Kept
		}
		var writes []write
		tun := &Tunnel{known: newRegistry()}
		tun.cfg.Keep = func(_ context.Context, all []Kept) error {
			writes = append(writes, write{time.Since(begun), all})
			time.Sleep(took)
			return nil
		}
		ctx, stop := context.WithCancel(t.Context())
		go tun.keep(ctx)
		defer synctest.Wait()
		defer stop()
		device := func(n byte) *registration {
			r := tun.known.put(&Peer{Key: [32]byte{n}, Addresses: [2]netip.Addr{netip.AddrFrom4([4]byte{100, 64, 0, n})}}, [32]byte{})
			tun.known.wake(r, nil, time.Now())
			return r
		}
		shakes := func(r *registration, port uint16) {
			tun.known.index(r, uint32(port), time.Now())
			at := place{addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, r.key[0]}), port)}
			if !tun.known.settle(r, r.peer, at, time.Now()) {
				t.Fatal("it has no peer")
			}
		}
		one, two := device(1), device(2)
		tun.known.markDirty(one) // its initiation was accepted
		time.Sleep(took + time.Millisecond)
		shakes(one, 1000) // in the pause after that write
		time.Sleep(took + time.Millisecond)
		shakes(one, 1001)
		tun.known.markDirty(two)
		time.Sleep(time.Millisecond)
		shakes(one, 1002)
		time.Sleep(time.Hour)
		synctest.Wait()
		want := []struct {
			at    time.Duration
			ports []uint16 // 0: none yet
		}{
			{0, []uint16{0}},
			{took + time.Millisecond, []uint16{1000}},
			{2*took + time.Millisecond + keepShare*took, []uint16{0, 1002}},
		}
		for i, w := range writes {
			var ports []uint16
			for _, k := range w.kept {
				ports = append(ports, k.Endpoint.Port())
			}
			slices.Sort(ports)
			if i >= len(want) || w.at != want[i].at || !slices.Equal(ports, want[i].ports) {
				t.Errorf("write %d after %v: ports %v", i+1, w.at, ports)
			}
		}
		if len(writes) != len(want) {
			t.Errorf("%d writes", len(writes))
		}
	})
}
