package transport_test

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/internal/transport"
)

// endless is an inside that always has as many packets as are asked for.
type endless struct {
	tun.Device
	err error
}

func (d endless) Read(bufs [][]byte, _ []int, _ int) (int, error) { return len(bufs), d.err }

// sink is an outside that takes everything.
type sink struct{ conn.Bind }

func (sink) Send([][]byte, conn.Endpoint) error { return io.ErrShortWrite }

// messages are n messages of a type, of a keepalive's length and more bytes.
func messages(n int, kind byte, more int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = make([]byte, device.MessageKeepaliveSize+more)
		out[i][0] = kind
	}
	return out
}

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const batch = 128
		inside, outside, _ := transport.Pace(endless{}, sink{})
		read := func() (waited time.Duration) {
			start := time.Now()
			if n, err := inside.Read(make([][]byte, batch), make([]int, batch), 16); n != batch || err != nil {
				t.Fatalf("Read: %d, %v", n, err)
			}
			return time.Since(start)
		}
		send := func(m [][]byte) {
			if err := outside.Send(m, nil); !errors.Is(err, io.ErrShortWrite) {
				t.Fatalf("Send: %v", err)
			}
		}
		under := 0
		for ; under < 128*max(2, runtime.GOMAXPROCS(0)); under += batch {
			if waited := read(); waited != 0 {
				t.Fatalf("with %d packets under way Read waited %v", under, waited)
			}
		}
		// What is no packet of the inside is none that left it.
		done := make(chan time.Duration, 1)
		go func() { done <- read() }()
		synctest.Wait()
		send(messages(under, device.MessageTransportType, 0))
		send(messages(under, device.MessageInitiationType, 100))
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if len(done) != 0 {
			t.Fatal("Read went on although nothing was sent")
		}
		send(messages(under/2, device.MessageTransportType, 1))
		if waited := <-done; waited != time.Millisecond {
			t.Errorf("Read waited %v, want until half was sent", waited)
		}
		// What does not come out again is lost: that costs a moment for every
		// full measure of it.
		limit := 128 * max(2, runtime.GOMAXPROCS(0))
		stalled := func(reads, lost int, pause time.Duration) (d time.Duration) {
			for range reads {
				time.Sleep(pause)
				d += read()
				send(messages(batch-lost, device.MessageTransportType, 1))
			}
			return d
		}
		if d, most := stalled(1000, batch, 0), time.Duration(1000*batch/limit)*5*time.Millisecond; d > most {
			t.Errorf("Read waited %v for 1,000 batches that were lost, want at most %v", d, most)
		}
		if d, most := stalled(1000, 1, time.Millisecond), time.Duration(1000/(limit-batch)+1)*5*time.Millisecond; d > most {
			t.Errorf("Read waited %v because of 1,000 packets that were lost, want at most %v", d, most)
		}
		// More than was taken, as of packets that were counted as lost.
		send(messages(10*under, device.MessageTransportType, 1))
		if waited := read(); waited != 0 {
			t.Errorf("Read waited %v after much was sent", waited)
		}
	})
}

// Packets that never left, as those of a device that sleeps, are in nobody's way
// for long, however much leaves meanwhile.
func TestPaceAfterLosses(t *testing.T) {
	limit := 128 * max(2, runtime.GOMAXPROCS(0))
	batch := limit / 16
	for _, lost := range []int{0, limit / 4, limit/2 + batch, 3 * limit / 4, limit - batch, limit} {
		synctest.Test(t, func(t *testing.T) {
			inside, outside, _ := transport.Pace(endless{}, sink{})
			read := func() {
				if _, err := inside.Read(make([][]byte, batch), make([]int, batch), 16); err != nil {
					t.Fatal(err)
				}
			}
			for n := 0; n < lost; n += batch {
				read()
			}
			const each, reads = 30 * time.Microsecond, 2000
			under := make(chan [][]byte, 1000)
			var sending sync.WaitGroup
			sending.Go(func() {
				for m := range under {
					time.Sleep(each)
					_ = outside.Send(m, nil)
				}
			})
			begun := time.Now()
			for range reads {
				read()
				under <- messages(batch, device.MessageTransportType, 1)
			}
			if took, most := time.Since(begun), reads*each+20*time.Millisecond; took > most {
				t.Errorf("after %d losses %d packets take %v, want at most %v", lost, reads*batch, took, most)
			}
			close(under)
			sending.Wait()
		})
	}
}

// Nor are a few, once it was quiet.
func TestPaceForgetsLosses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := 128 * max(2, runtime.GOMAXPROCS(0))
		inside, _, _ := transport.Pace(endless{}, sink{})
		read := func(n int) {
			if _, err := inside.Read(make([][]byte, n), make([]int, n), 16); err != nil {
				t.Fatal(err)
			}
		}
		read(limit / 2)
		time.Sleep(5 * time.Millisecond)
		begun := time.Now()
		read(limit / 2)
		read(limit / 2)
		if waited := time.Since(begun); waited != 0 {
			t.Errorf("Read waited %v for what was lost long ago", waited)
		}
	})
}

func (endless) Write(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }

// slowWrite is an inside whose Write takes until end is closed.
type slowWrite struct {
	endless
	begun, end chan struct{}
}

func (d *slowWrite) Write(bufs [][]byte, _ int) (int, error) {
	close(d.begun)
	<-d.end
	return len(bufs), nil
}

// source is an outside with two sockets that always have as many messages as
// are asked for.
type source struct {
	conn.Bind
	message []byte
}

func (s source) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fn := func(packets [][]byte, sizes []int, _ []conn.Endpoint) (int, error) {
		for i := range packets {
			sizes[i] = copy(packets[i], s.message)
		}
		return len(packets), nil
	}
	return []conn.ReceiveFunc{fn, fn}, port, nil
}

// taking is a receiving of messages that WireGuard takes or refuses.
type taking struct {
	fn    conn.ReceiveFunc
	bufs  [][]byte
	sizes []int
	eps   []conn.Endpoint
}

func newTaking(fn conn.ReceiveFunc, batch int) *taking {
	r := &taking{fn, make([][]byte, batch), make([]int, batch), make([]conn.Endpoint, batch)}
	for i := range r.bufs {
		r.bufs[i] = make([]byte, 2048)
	}
	return r
}

// receive returns what was received, and how long that took.
func (r *taking) receive(t *testing.T, taken bool) (got [][]byte, waited time.Duration) {
	start := time.Now()
	n, err := r.fn(r.bufs, r.sizes, r.eps)
	if n != len(r.bufs) || err != nil {
		t.Errorf("receiving: %d, %v", n, err)
	}
	waited = time.Since(start)
	if !taken {
		return nil, waited
	}
	got = slices.Clone(r.bufs)
	for i := range r.bufs {
		r.bufs[i] = make([]byte, 2048)
	}
	return got, waited
}

func TestPaceInwards(t *testing.T) {
	const batch = 64
	packet := messages(1, device.MessageTransportType, 1)[0]
	limit := 128 * max(2, runtime.GOMAXPROCS(0))
	start := func(t *testing.T, inside tun.Device, message []byte) (write func([][]byte), r [2]*taking) {
		inside, outside, _ := transport.Pace(inside, source{message: message})
		fns, _, err := outside.Open(0)
		if err != nil || len(fns) != len(r) {
			t.Fatalf("Open: %d, %v", len(fns), err)
		}
		for i, fn := range fns {
			r[i] = newTaking(fn, batch)
		}
		return func(bufs [][]byte) {
			if n, err := inside.Write(bufs, 16); err != nil {
				t.Errorf("Write: %d, %v", n, err)
			}
		}, r
	}
	// fill receives until there is no room, and returns each batch.
	fill := func(t *testing.T, r *taking) (all [][][]byte) {
		for range limit / batch {
			got, waited := r.receive(t, true)
			if waited != 0 {
				t.Fatalf("waited %v with room", waited)
			}
			all = append(all, got)
		}
		return all
	}
	t.Run("every socket waits for room", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			write, r := start(t, endless{}, packet)
			all := fill(t, r[0])
			done := make(chan time.Duration, 2)
			for _, r := range r {
				go func() {
					_, waited := r.receive(t, true)
					done <- waited
				}()
			}
			time.Sleep(time.Millisecond)
			half := len(all) / 2
			for _, b := range all[:half-1] {
				write(b)
			}
			synctest.Wait()
			if len(done) != 0 {
				t.Fatal("went on before half was written")
			}
			write(all[half-1])
			for range r {
				if waited := <-done; waited != time.Millisecond {
					t.Errorf("waited %v, want until half was written", waited)
				}
			}
		})
	})
	t.Run("what is on its way out is not lost", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			slow := &slowWrite{begun: make(chan struct{}), end: make(chan struct{})}
			write, r := start(t, slow, packet)
			all := fill(t, r[0])
			go write(slices.Concat(all...))
			<-slow.begun
			done := make(chan struct{})
			go func() { defer close(done); r[0].receive(t, true) }()
			time.Sleep(time.Second)
			synctest.Wait()
			select {
			case <-done:
				t.Error("received more while all was being written")
			default:
			}
			close(slow.end)
			<-done
		})
	})
	t.Run("what came before the written is gone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			write, r := start(t, endless{}, packet)
			for range 100 {
				all := fill(t, r[0])
				write(all[len(all)-1][:1]) // all else of it was rubbish
			}
		})
	})
	t.Run("one session's rubbish is not another's", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			message := bytes.Clone(packet)
			write, r := start(t, endless{}, message)
			good, _ := r[0].receive(t, true)
			message[4] = 1
			for range limit/batch - 1 {
				r[0].receive(t, true)
			}
			// The good one is being slow: its packets go on to be counted.
			time.Sleep(1500 * time.Microsecond)
			write(good[:1])
			message[4] = 0
			good, waited := r[0].receive(t, true)
			if waited != 0 {
				t.Errorf("waited %v with room", waited)
			}
			if _, waited = r[0].receive(t, true); waited != 500*time.Microsecond {
				t.Errorf("waited %v for room, want until the rubbish is 2 ms old", waited)
			}
			write(good)
		})
	})
	for _, tt := range []struct {
		name    string
		message []byte
		taken   bool
		most    time.Duration // for a thousand batches of which nothing is written
	}{
		{"refused, as of who knows no session", packet, false, 0},
		{"keepalives", messages(1, device.MessageTransportType, 0)[0], true, 0},
		{"handshakes", messages(1, device.MessageInitiationType, 100)[0], true, 0},
		{"repeated", packet, true, time.Duration(1000*batch/limit) * 2 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, r := start(t, endless{}, tt.message)
				var all time.Duration
				for range 1000 {
					_, waited := r[0].receive(t, tt.taken)
					all += waited
				}
				if all > tt.most || tt.most > 0 && all == 0 {
					t.Errorf("waited %v, want at most %v", all, tt.most)
				}
			})
		})
	}
	t.Run("repeated, 20,000 a second", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, r := start(t, endless{}, packet)
			for range 1000 {
				if _, waited := r[0].receive(t, true); waited != 0 {
					t.Fatalf("waited %v", waited)
				}
				time.Sleep(batch * time.Second / 20000)
			}
		})
	})
}

func TestPacePassesErrorsOn(t *testing.T) {
	inside, _, _ := transport.Pace(endless{err: io.EOF}, sink{})
	if _, err := inside.Read(nil, nil, 0); !errors.Is(err, io.EOF) {
		t.Errorf("Read: %v", err)
	}
}
