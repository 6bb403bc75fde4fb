package tunnel

import (
	"context"
	"errors"
	"log/slog"
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
			tun.known.answered(r, uint32(port), time.Now())
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

// What the store did not take is given to it again, with what changed since, also
// when the tunnel ends: the newest initiation above all, which no older may follow.
func TestKeepsWhatCouldNotBeStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		refuse := 3
		var writes []time.Duration
		var kept []Kept
		tun := &Tunnel{known: newRegistry(), log: slog.New(slog.DiscardHandler)}
		tun.cfg.Keep = func(_ context.Context, all []Kept) error {
			writes = append(writes, time.Since(begun))
			if refuse--; refuse >= 0 {
				return errors.New("database is locked")
			}
			kept = append(kept, all...)
			return nil
		}
		ctx, stop := context.WithCancel(t.Context())
		go tun.keep(ctx)
		mark := func(n byte) {
			tun.known.markDirty(tun.known.put(&Peer{Key: [32]byte{n}}, [32]byte{}))
		}
		mark(1)
		time.Sleep(time.Minute)
		synctest.Wait()
		if want := []time.Duration{0, keepAgain, 2 * keepAgain, 3 * keepAgain}; !slices.Equal(writes, want) || len(kept) != 1 {
			t.Errorf("written at %v, kept %v", writes, kept)
		}
		refuse = 1
		mark(2)
		synctest.Wait()
		stop()
		synctest.Wait()
		if len(kept) != 2 || kept[1].Key != [32]byte{2} {
			t.Errorf("kept at the end: %v", kept)
		}
	})
}

// Nobody is called by UDP where only a WebSocket was.
func TestKeepsNoPlaceOfAWebSocket(t *testing.T) {
	g := newRegistry()
	r := g.put(&Peer{Key: [32]byte{1}}, [32]byte{})
	g.wake(r, nil, time.Now())
	at := place{addr: netip.MustParseAddrPort("192.0.2.1:443")}
	for _, device := range []string{"", "dev-1"} {
		at.device = device
		g.answered(r, 1, time.Now())
		if !g.settle(r, r.peer, at, time.Now()) {
			t.Fatal("it has no peer")
		}
		kept := g.takeDirty()
		if len(kept) != 1 || kept[0].Endpoint.IsValid() != (device == "") || kept[0].Handshake.IsZero() {
			t.Errorf("device %q: %v", device, kept)
		}
	}
}
