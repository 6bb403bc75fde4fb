package tunnel

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/internal/transport"
)

func pair() (private, public [32]byte) {
	_, _ = rand.Read(private[:])
	p, err := curve25519.X25519(private[:], curve25519.Basepoint)
	if err != nil {
		panic(err)
	}
	return private, [32]byte(p)
}

// author is an upstream device that writes initiations to a gateway's key and
// sends nothing.
type author struct {
	dev             *device.Device
	private, public [32]byte
	cookies         device.CookieGenerator
	gateway         [32]byte
}

type noTUN struct{ tun.Device }

func (noTUN) MTU() (int, error)        { return 1280, nil }
func (noTUN) BatchSize() int           { return 1 }
func (noTUN) Close() error             { return nil }
func (noTUN) Events() <-chan tun.Event { c := make(chan tun.Event); close(c); return c }
func (noTUN) Read([][]byte, []int, int) (int, error) {
	select {} // the device is never up
}

func newAuthor(tb testing.TB, gateway [32]byte) *author {
	tb.Helper()
	a := &author{gateway: gateway}
	a.private, a.public = pair()
	return a
}

// write makes an initiation as upstream does.
func (a *author) write(tb testing.TB) *datagram {
	tb.Helper()
	if a.dev == nil {
		ch := &closable{done: make(chan struct{})}
		a.dev = device.NewDevice(ch, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
		tb.Cleanup(a.dev.Close)
		if err := a.dev.IpcSet(fmt.Sprintf("private_key=%x\npublic_key=%x\n", a.private, a.gateway)); err != nil {
			tb.Fatal(err)
		}
		a.cookies.Init(a.gateway)
	}
	msg, err := a.dev.CreateMessageInitiation(a.dev.LookupPeer(a.gateway))
	if err != nil {
		tb.Fatal(err)
	}
	var d datagram
	b := d[:0]
	b = append(b, 1, 0, 0, 0, byte(msg.Sender), byte(msg.Sender>>8), byte(msg.Sender>>16), byte(msg.Sender>>24))
	b = append(append(append(b, msg.Ephemeral[:]...), msg.Static[:]...), msg.Timestamp[:]...)
	if len(b) != mac1At {
		tb.Fatalf("%d bytes before mac1", len(b))
	}
	a.cookies.AddMacs(d[:])
	return &d
}

// closable is a TUN device whose Read ends with Close.
type closable struct {
	noTUN
	done chan struct{}
}

func (c *closable) Close() error { close(c.done); return nil }
func (c *closable) Read([][]byte, []int, int) (int, error) {
	<-c.done
	return 0, fmt.Errorf("closed")
}

// What upstream writes is opened to its author's key and a time stamp of now,
// and what upstream answers is recognised.
func TestOpensWhatUpstreamWrites(t *testing.T) {
	private, public := pair()
	o := newOpener(private, public)
	before := time.Now().Add(-time.Second)
	for range 20 {
		a := newAuthor(t, public)
		d := a.write(t)
		in, ok := o.open(d)
		if !ok || in.key != a.public {
			t.Fatalf("opened %v as %x, want %x", ok, in.key, a.public)
		}
		shared, ok := o.shared(&in.key)
		if !ok {
			t.Fatal("no exchange")
		}
		ts, ok := in.timestamp(&shared)
		if !ok {
			t.Fatal("the time stamp does not open")
		}
		if at, err := time.Parse("2006-01-02 15:04:05.999999999 -0700 MST", ts.String()); err != nil || at.Before(before) {
			t.Errorf("time stamp %v, %v", ts, err)
		}
		in.wipe()
		if in.chain != ([32]byte{}) || in.hash != ([32]byte{}) {
			t.Error("something is left after wiping")
		}
	}
}

// Every bit counts: one that is changed makes it nobody's.
func TestOpensNothingBitFlipped(t *testing.T) {
	private, public := pair()
	o := newOpener(private, public)
	var checker device.CookieChecker
	checker.Init(public)
	a := newAuthor(t, public)
	d := a.write(t)
	shared, _ := o.shared(&a.public)
	if !checker.CheckMAC1(d[:]) {
		t.Fatal("mac1")
	}
	for i := ephemeralAt; i < mac2At; i++ {
		e := *d
		e[i] ^= 1 << (i % 7)
		if checker.CheckMAC1(e[:]) {
			t.Errorf("mac1 holds with byte %d changed", i)
		}
		if i >= mac1At {
			continue
		}
		in, ok := o.open(&e)
		if !ok {
			continue
		}
		if i < timestampAt {
			t.Errorf("opened with byte %d changed", i)
		}
		if _, ok := in.timestamp(&shared); ok {
			t.Errorf("time stamp opened with byte %d changed", i)
		}
	}
	// A point of low order has an exchange everybody knows.
	e := *d
	clear(e[ephemeralAt:staticAt])
	if _, ok := o.open(&e); ok {
		t.Error("opened with a point of low order")
	}
	if _, ok := o.shared(&[32]byte{}); ok {
		t.Error("exchanged with a point of low order")
	}
}

// Only the response to the very initiation, made for its author, answers it.
func TestAnswers(t *testing.T) {
	private, public := pair()
	a, b := newAuthor(t, public), newAuthor(t, public)
	da, db := a.write(t), b.write(t)
	gw := device.NewDevice(&closable{done: make(chan struct{})}, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	defer gw.Close()
	conf := fmt.Sprintf("private_key=%x\npublic_key=%x\n", private, a.public)
	if err := gw.IpcSet(conf); err != nil {
		t.Fatal(err)
	}
	peer := gw.LookupPeer(a.public)
	peer.Start() // ConsumeMessageInitiation wants a running peer
	msg := device.MessageInitiation{Type: 1, Sender: uint32(da[4]) | uint32(da[5])<<8 | uint32(da[6])<<16 | uint32(da[7])<<24}
	copy(msg.Ephemeral[:], da[ephemeralAt:])
	copy(msg.Static[:], da[staticAt:])
	copy(msg.Timestamp[:], da[timestampAt:])
	if gw.ConsumeMessageInitiation(&msg) != peer {
		t.Fatal("upstream does not consume it")
	}
	r, err := gw.CreateMessageResponse(peer)
	if err != nil {
		t.Fatal(err)
	}
	resp := make([]byte, device.MessageResponseSize)
	resp[0] = 2
	for i := range 4 {
		resp[4+i], resp[8+i] = byte(r.Sender>>(8*i)), byte(r.Receiver>>(8*i))
	}
	copy(resp[12:], r.Ephemeral[:])
	copy(resp[44:], r.Empty[:])
	var signs device.CookieGenerator
	signs.Init(a.public)
	signs.AddMacs(resp)
	if !answers(resp, da, &a.public) {
		t.Error("the answer is not recognised")
	}
	if answers(resp, da, &b.public) || answers(resp, db, &a.public) || answers(resp[:91], da, &a.public) {
		t.Error("it answers something else")
	}
}

func FuzzOpen(f *testing.F) {
	private, public := [32]byte{0: 8, 31: 64}, [32]byte{}
	p, _ := curve25519.X25519(private[:], curve25519.Basepoint)
	copy(public[:], p)
	o := newOpener(private, public)
	f.Add(make([]byte, 148))
	f.Add(bytes.Repeat([]byte{0xff}, 148))
	f.Add([]byte{1, 0, 0, 0})
	f.Add([]byte{})
	f.Add(NewInitiator(public).Initiate(1, time.Unix(1_800_000_000, 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = transport.Kind(b)
		if len(b) != len(datagram{}) {
			if answers(b, &datagram{}, &[32]byte{}) {
				t.Error("it is an answer")
			}
			return
		}
		d := datagram(b)
		in, ok := o.open(&d)
		if !ok {
			return
		}
		defer in.wipe()
		// What opens was sealed: not a bit of it may differ.
		for _, at := range []int{ephemeralAt, staticAt, timestampAt - 1} {
			e := d
			e[at] ^= 1
			if _, ok := o.open(&e); ok {
				t.Errorf("opened with byte %d changed", at)
			}
		}
	})
}

// FuzzAdmit gives the gate whatever arrives, the way the sockets do: nothing of
// it may reach WireGuard, be answered with more than it is long, or panic.
func FuzzAdmit(f *testing.F) {
	private := [32]byte{0: 8, 31: 64} // the corpus has datagrams that are signed for it
	tn, err := New(Config{PrivateKey: private, Listen: "127.0.0.1:0", Table: tableForTest()})
	if err != nil {
		f.Fatal(err)
	}
	tn.bind = newIngress(tn, nil)
	src := netip.MustParseAddrPort("192.0.2.1:5000")
	for _, n := range []int{0, 1, 4, 31, 32, 64, 92, 148, 149, 1500} {
		for kind := range byte(6) {
			b := make([]byte, n)
			if n > 0 {
				b[0] = kind
			}
			f.Add(b)
		}
	}
	f.Add(NewInitiator(tn.public).Initiate(1, time.Unix(1_800_000_000, 0)))
	var checker device.CookieChecker
	checker.Init(tn.public)
	f.Fuzz(func(t *testing.T, b []byte) {
		sizes := []int{len(b)}
		buf := make([]byte, max(len(b), 1))
		copy(buf, b)
		eps := []conn.Endpoint{&conn.StdNetEndpoint{AddrPort: src}}
		tn.bind.inspect([][]byte{buf}, sizes, eps)
		if sizes[0] != 0 && transport.Kind(b) != device.MessageTransportType {
			t.Errorf("%d bytes of type %d reach WireGuard", sizes[0], transport.Kind(b))
		}
		for {
			select {
			case j := <-tn.gate.strangers:
				if !checker.CheckMAC1(j.datagram[:]) {
					t.Error("queued without mac1")
				}
				continue
			case <-tn.gate.cookies:
				continue
			case <-tn.gate.known:
				t.Error("a stranger goes first")
			default:
			}
			return
		}
	})
}
