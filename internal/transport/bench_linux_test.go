package transport

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// pump is a tun.Device that gives packets of one size to one address, as many
// as it is allowed, and counts what it gets.
type pump struct {
	packet []byte
	tokens chan int // packets to give with one Read
	got    atomic.Int64
	done   chan struct{}
	events chan tun.Event
	once   sync.Once

	written atomic.Pointer[func([][]byte)] // told of every Write
}

func newPump(size int, src, dst [4]byte) *pump {
	p := make([]byte, size)
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(size))
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	return &pump{packet: p, tokens: make(chan int, 64), done: make(chan struct{}), events: make(chan tun.Event)}
}

func (*pump) File() *os.File             { return nil }
func (*pump) MTU() (int, error)          { return 1420, nil }
func (*pump) Name() (string, error)      { return "pump", nil }
func (p *pump) Events() <-chan tun.Event { return p.events }
func (*pump) BatchSize() int             { return 128 }

func (p *pump) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case n := <-p.tokens:
		n = min(n, len(bufs))
		for i := range n {
			sizes[i] = copy(bufs[i][offset:], p.packet)
		}
		return n, nil
	case <-p.done:
		return 0, os.ErrClosed
	}
}

func (p *pump) Write(bufs [][]byte, _ int) (int, error) {
	if written := p.written.Load(); written != nil {
		(*written)(bufs)
	}
	p.got.Add(int64(len(bufs)))
	return len(bufs), nil
}

func (p *pump) Close() error {
	p.once.Do(func() {
		close(p.done)
		close(p.events)
	})
	return nil
}

// pair is a gateway with several clients behind a Bind each, on loopback.
type pair struct {
	gateway  *pump
	clients  []*pump
	devices  []*device.Device
	received int64
}

func benchKey() (priv, pub [32]byte) {
	_, _ = rand.Read(priv[:])
	p, err := curve25519.X25519(priv[:], curve25519.Basepoint)
	if err != nil {
		panic(err)
	}
	return priv, [32]byte(p)
}

func newPair(b testing.TB, clients, size int, bind func() conn.Bind) *pair {
	priv, pub := benchKey()
	p := &pair{gateway: newPump(size, [4]byte{10, 0, 0, 1}, [4]byte{10, 1, 0, 0})}
	gw := device.NewDevice(p.gateway, bind(), device.NewLogger(device.LogLevelSilent, ""))
	if err := errors.Join(gw.IpcSet(fmt.Sprintf("private_key=%x\n", priv)), gw.Up()); err != nil {
		b.Fatal(err)
	}
	p.devices = append(p.devices, gw)
	conf, _ := gw.IpcGet()
	var port int
	for l := range lines(conf) {
		_, _ = fmt.Sscanf(l, "listen_port=%d", &port)
	}
	for i := range clients {
		ip := [4]byte{10, 1, byte(i >> 8), byte(i)}
		c := newPump(size, ip, [4]byte{10, 0, 0, 1})
		cpriv, cpub := benchKey()
		d := device.NewDevice(c, bind(), device.NewLogger(device.LogLevelSilent, ""))
		err := errors.Join(
			gw.IpcSet(fmt.Sprintf("public_key=%x\nallowed_ip=%v/32\n", cpub, netip.AddrFrom4(ip))),
			d.IpcSet(fmt.Sprintf("private_key=%x\npublic_key=%x\nendpoint=127.0.0.1:%d\nallowed_ip=10.0.0.1/32\n", cpriv, pub, port)),
			d.Up())
		if err != nil {
			b.Fatal(err)
		}
		p.clients, p.devices = append(p.clients, c), append(p.devices, d)
	}
	for _, c := range p.clients {
		c.tokens <- 1
	}
	p.await(b, int64(len(p.clients)))
	return p
}

func lines(s string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for s != "" {
			i := 0
			for i < len(s) && s[i] != '\n' {
				i++
			}
			if !yield(s[:i]) {
				return
			}
			s = s[min(i+1, len(s)):]
		}
	}
}

// await waits until the gateway has n more packets.
func (p *pair) await(b testing.TB, n int64) {
	for end := time.Now().Add(10 * time.Second); p.gateway.got.Load()-p.received < n; time.Sleep(20 * time.Microsecond) {
		if time.Now().After(end) {
			b.Fatalf("%d of %d packets arrived", p.gateway.got.Load()-p.received, n)
		}
	}
	p.received += n
}

func (p *pair) close() {
	for _, d := range p.devices {
		d.Close()
	}
}

// send lets every client send batches of so many packets, and waits for them.
func (p *pair) send(b testing.TB, batch, batches int) {
	for range batches {
		for _, c := range p.clients {
			c.tokens <- batch
		}
		p.await(b, int64(batch*len(p.clients)))
	}
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkDevices sends through two real WireGuard devices over loopback, with
// our Bind and with upstream's in turns, and compares the CPU of both ends.
func BenchmarkDevices(b *testing.B) {
	for _, c := range []struct {
		name                 string
		clients, size, batch int
	}{
		{"bulk-1client-1420B-x128", 1, 1420, 128},
		{"small-1client-200B-x1", 1, 200, 1},
		{"small-1client-200B-x16", 1, 200, 16},
		{"voice-200clients-200B-x1", 200, 200, 1},
	} {
		b.Run(c.name, func(b *testing.B) {
			var pairs [2]*pair
			for i, bind := range []func() conn.Bind{func() conn.Bind { return NewUDP(UDPOptions{Sticky: true}) }, conn.NewStdNetBind} {
				pairs[i] = newPair(b, c.clients, c.size, bind)
				defer pairs[i].close()
			}
			var spent, took [2]time.Duration
			packets := 0
			batches := max(1, 2560/(c.batch*c.clients))
			for b.Loop() {
				for i, p := range pairs {
					begun, from := cpu(), time.Now()
					p.send(b, c.batch, batches)
					spent[i] += cpu() - begun
					took[i] += time.Since(from)
				}
				packets += batches * c.batch * c.clients
			}
			for i, name := range []string{"ours", "upstream"} {
				b.ReportMetric(float64(spent[i].Nanoseconds())/float64(packets), "cpu-ns/packet-"+name)
			}
			b.ReportMetric(float64(spent[0])/float64(spent[1]), "cpu-ratio")
			b.ReportMetric(float64(took[0])/float64(took[1]), "time-ratio")
		})
	}
}

// BenchmarkBinds sends through the Binds alone.
func BenchmarkBinds(b *testing.B) {
	for _, c := range []struct {
		name               string
		senders, size, run int
	}{
		{"bulk", 1, 1452, 128}, {"small", 1, 232, 1}, {"voice-64senders", 64, 232, 1},
	} {
		for _, kind := range []string{"ours", "upstream"} {
			b.Run(c.name+"/"+kind, func(b *testing.B) {
				bind := func() conn.Bind {
					if kind == "ours" {
						return NewUDP(UDPOptions{Sticky: true})
					}
					return conn.NewStdNetBind()
				}
				to := bind()
				fns, port, err := to.Open(0)
				if err != nil {
					b.Fatal(err)
				}
				defer to.Close()
				senders := make([]conn.Bind, c.senders)
				for i := range senders {
					senders[i] = bind()
					if _, _, err := senders[i].Open(0); err != nil {
						b.Fatal(err)
					}
					defer senders[i].Close()
				}
				ep, _ := senders[0].ParseEndpoint(net.JoinHostPort("127.0.0.1", fmt.Sprint(port)))
				d := datagrams(1, repeat(c.size, c.run)...)
				for i := range d {
					d[i] = append(make([]byte, 0, device.MaxMessageSize), d[i]...)
				}
				bufs, sizes, eps := make([][]byte, 128), make([]int, 128), make([]conn.Endpoint, 128)
				for i := range bufs {
					bufs[i] = make([]byte, device.MaxMessageSize)
				}
				b.ReportAllocs()
				begun, packets := cpu(), 0
				for b.Loop() {
					for _, s := range senders {
						if err := s.Send(d, ep); err != nil {
							b.Fatal(err)
						}
					}
					for got := 0; got < c.run*c.senders; {
						n, err := fns[0](bufs, sizes, eps)
						if err != nil {
							b.Fatal(err)
						}
						got += n
					}
					packets += c.run * c.senders
				}
				b.ReportMetric(float64((cpu()-begun).Nanoseconds())/float64(packets), "cpu-ns/packet")
			})
		}
	}
}
