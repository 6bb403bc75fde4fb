package transport_test

import (
	"errors"
	"io"
	"runtime"
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

func TestPaceInwards(t *testing.T) {
	const batch = 64
	packet := messages(1, device.MessageTransportType, 1)[0]
	limit := 128 * max(2, runtime.GOMAXPROCS(0))
	// taken says whether WireGuard takes what it is given, or refuses it.
	start := func(t *testing.T, message []byte) (write func(n int), receive [2]func(taken bool) (waited time.Duration)) {
		inside, outside, _ := transport.Pace(endless{}, source{message: message})
		fns, _, err := outside.Open(0)
		if err != nil || len(fns) != len(receive) {
			t.Fatalf("Open: %d, %v", len(fns), err)
		}
		for i, fn := range fns {
			bufs, sizes, eps := make([][]byte, batch), make([]int, batch), make([]conn.Endpoint, batch)
			for j := range bufs {
				bufs[j] = make([]byte, 2048)
			}
			receive[i] = func(taken bool) time.Duration {
				start := time.Now()
				if n, err := fn(bufs, sizes, eps); n != batch || err != nil {
					t.Errorf("receiving: %d, %v", n, err)
				}
				for j := range bufs {
					if taken {
						bufs[j] = make([]byte, 2048)
					}
				}
				return time.Since(start)
			}
		}
		return func(n int) {
			if n, err := inside.Write(make([][]byte, n), 16); err != nil {
				t.Errorf("Write: %d, %v", n, err)
			}
		}, receive
	}
	t.Run("every socket waits for room", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			write, receive := start(t, packet)
			for range limit / batch {
				if waited := receive[0](true); waited != 0 {
					t.Fatalf("waited %v with room", waited)
				}
			}
			done := make(chan time.Duration, 2)
			for _, r := range receive {
				go func() { done <- r(true) }()
			}
			time.Sleep(time.Millisecond)
			synctest.Wait()
			write(limit/2 - 1)
			synctest.Wait()
			if len(done) != 0 {
				t.Fatal("went on before half was written")
			}
			write(1)
			for range receive {
				if waited := <-done; waited != time.Millisecond {
					t.Errorf("waited %v, want until half was written", waited)
				}
			}
		})
	})
	t.Run("what is on its way out is not lost", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			slow := &slowWrite{begun: make(chan struct{}), end: make(chan struct{})}
			inside, outside, _ := transport.Pace(slow, source{message: packet})
			fns, _, err := outside.Open(0)
			if err != nil {
				t.Fatal(err)
			}
			receive := func() {
				bufs := make([][]byte, batch) // other ones each time: they were taken
				for i := range bufs {
					bufs[i] = make([]byte, 2048)
				}
				if _, err := fns[0](bufs, make([]int, batch), make([]conn.Endpoint, batch)); err != nil {
					t.Error(err)
				}
			}
			for range limit / batch {
				receive()
			}
			go func() { _, _ = inside.Write(make([][]byte, limit), 16) }()
			<-slow.begun
			done := make(chan struct{})
			go func() { defer close(done); receive() }()
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
				_, receive := start(t, tt.message)
				var waited time.Duration
				for range 1000 {
					waited += receive[0](tt.taken)
				}
				if waited > tt.most || tt.most > 0 && waited == 0 {
					t.Errorf("waited %v, want at most %v", waited, tt.most)
				}
			})
		})
	}
}

func TestPacePassesErrorsOn(t *testing.T) {
	inside, _, _ := transport.Pace(endless{err: io.EOF}, sink{})
	if _, err := inside.Read(nil, nil, 0); !errors.Is(err, io.EOF) {
		t.Errorf("Read: %v", err)
	}
}
