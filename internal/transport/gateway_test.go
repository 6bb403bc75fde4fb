package transport

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// front is a Gateway with a web server in front of it, which takes the path for
// the device's name.
type front struct {
	*Gateway
	port uint16
	url  string
	in   chan arrival
	errs chan error // of Accept
}

func newFront(t *testing.T) *front {
	t.Helper()
	f := &front{Gateway: NewGateway(UDPOptions{}), in: make(chan arrival, 1000), errs: make(chan error, 100)}
	fns, port, err := f.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	f.port = port
	var wg sync.WaitGroup
	for _, fn := range fns {
		wg.Go(func() {
			bufs, sizes, eps := make([][]byte, 8), make([]int, 8), make([]conn.Endpoint, 8)
			for i := range bufs {
				bufs[i] = make([]byte, device.MaxMessageSize)
			}
			for {
				n, err := fn(bufs, sizes, eps)
				if err != nil {
					return
				}
				for i := range n {
					if sizes[i] > 0 {
						f.in <- arrival{newDatagram(bufs[i][:sizes[i]]), eps[i]}
					}
				}
			}
		})
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := f.Accept(w, r, r.URL.Path); err != nil {
			f.errs <- err
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	srv.Config.ConnContext = ConnContext
	srv.Start()
	f.url = srv.URL
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		srv.Close()
		wg.Wait()
	})
	return f
}

func (f *front) next(t *testing.T) arrival {
	t.Helper()
	select {
	case a := <-f.in:
		return a
	case <-time.After(3 * time.Second):
		t.Fatal("no datagram within 3 s")
		panic("unreachable")
	}
}

// socket dials as a device and runs the Stream; what comes goes to the channel.
func (f *front) socket(t *testing.T, name string) (*Stream, chan []byte) {
	t.Helper()
	c, res, err := websocket.Dial(t.Context(), f.url+"/"+name, nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ParseProbeKey(res.Header.Get(ProbeHeader))
	if err != nil {
		t.Fatal(err)
	}
	s := NewStream(t.Context(), c, netip.AddrPort{}, key)
	got := make(chan []byte, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(func(_ context.Context, d datagram) {
			got <- bytes.Clone(d.bytes())
			d.free()
		})
	}()
	t.Cleanup(func() {
		s.End(errors.New("test ends"))
		<-done
	})
	return s, got
}

func TestWebSocketCarriesDatagramsBothWays(t *testing.T) {
	f := newFront(t)
	s, got := f.socket(t, "a")
	want := datagrams(1, 1, 148, 1500, MaxDatagram)
	s.Send(want)
	for _, w := range want {
		a := f.next(t)
		if !bytes.Equal(a.bytes(), w) {
			t.Fatalf("got %d bytes, want %d", a.n, len(w))
		}
		ep := a.from.(*StreamEndpoint)
		if Remote(a.from) != ep.remote || !ep.DstIP().IsLoopback() || ep.DstToString() != ep.remote.String() {
			t.Errorf("endpoint %v", ep)
		}
		if again, ok := f.Stream(ep.Device(), ep.remote); !ok || again != ep {
			t.Errorf("found again as %v, %t", again, ok)
		}
		if err := f.Send([][]byte{w}, a.from); err != nil {
			t.Fatal(err)
		}
		select {
		case b := <-got:
			if !bytes.Equal(b, w) {
				t.Fatal("another datagram came back")
			}
		case <-time.After(3 * time.Second):
			t.Fatal("nothing came back")
		}
	}
}

// A UDP place is nobody's WebSocket, though one comes from the same address and
// port; and a WebSocket's is no other device's.
func TestUDPPlaceIsNoWebSocket(t *testing.T) {
	f := newFront(t)
	b, got := f.socket(t, "b")
	b.Send([][]byte{[]byte("hello")})
	at := f.next(t).from.(*StreamEndpoint).remote
	ep, err := f.ParseEndpoint(at.String())
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Send([][]byte{[]byte("for a")}, ep) // there is nobody at UDP
	if s, ok := f.Stream("/a", at); ok {
		t.Errorf("b's WebSocket %v is found as a's", s)
	}
	s, ok := f.Stream("/b", at)
	if !ok {
		t.Fatal("b's WebSocket is not found")
	}
	if _, ok := f.Stream("/b", netip.AddrPortFrom(at.Addr(), at.Port()^1)); ok {
		t.Error("b's WebSocket is found at another port")
	}
	if err := f.Send([][]byte{[]byte("for b")}, s); err != nil {
		t.Fatal(err)
	}
	select {
	case d := <-got:
		if string(d) != "for b" {
			t.Errorf("b got %q", d)
		}
	case <-time.After(3 * time.Second):
		t.Fatal("b got nothing")
	}
}

// A device that is removed loses its WebSocket at once, and no other does.
func TestHangup(t *testing.T) {
	f := newFront(t)
	a, _ := f.socket(t, "a")
	b, _ := f.socket(t, "b")
	for _, s := range []*Stream{a, b} {
		s.Send([][]byte{[]byte("hello")})
		f.next(t)
	}
	f.Hangup("/nobody")
	f.Hangup("/a")
	select {
	case <-a.Done():
	case <-time.After(3 * time.Second):
		t.Fatal("a's WebSocket stays open")
	}
	select {
	case <-b.Done():
		t.Error("b's WebSocket ended")
	case <-time.After(20 * time.Millisecond):
	}
	for range 300 {
		if f.StreamStats().Open == 1 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d WebSockets are open, want b's", f.StreamStats().Open)
}

func TestWebSocketTakesNoLongDatagram(t *testing.T) {
	f := newFront(t)
	s, got := f.socket(t, "a")
	long := datagrams(1, MaxDatagram+1, 30000, 5)
	for _, d := range long {
		if err := s.conn.Write(t.Context(), websocket.MessageBinary, d); err != nil {
			t.Fatal(err)
		}
	}
	a := f.next(t)
	if a.n != 5 {
		t.Fatalf("%d bytes came through", a.n)
	}
	if st := f.StreamStats(); st.Oversized != 2 || st.Open != 1 {
		t.Errorf("stats %+v", st)
	}
	_ = f.Send(datagrams(1, MaxDatagram+1, 6), a.from)
	if b := <-got; len(b) != 6 {
		t.Errorf("%d bytes came back", len(b))
	}
	if err := s.conn.Write(t.Context(), websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Done():
	case <-time.After(3 * time.Second):
		t.Error("a text message was taken")
	}
}

func TestNewWebSocketReplacesTheOldOne(t *testing.T) {
	f := newFront(t)
	old, _ := f.socket(t, "a")
	other, _ := f.socket(t, "b")
	fresh, _ := f.socket(t, "a")
	select {
	case <-old.Done():
	case <-time.After(3 * time.Second):
		t.Fatal("two WebSockets of one device")
	}
	for name, s := range map[string]*Stream{"another device's": other, "the new one": fresh} {
		s.Send(datagrams(1, 10))
		if f.next(t).n != 10 {
			t.Errorf("%s does not carry", name)
		}
	}
	if n := f.StreamStats().Open; n != 2 {
		t.Errorf("%d are open", n)
	}
}

func TestNoMoreWebSocketsThanTheLimit(t *testing.T) {
	f := newFront(t)
	f.mu.Lock()
	filler := &Stream{end: func(error) {}}
	for i := range MaxStreams {
		f.devices["/filler"+strings.Repeat("x", i%7)+string(rune('0'+i%10))+time.Duration(i).String()] = filler
	}
	for len(f.devices) > MaxStreams-1 {
		for k := range f.devices {
			delete(f.devices, k)
			break
		}
	}
	f.mu.Unlock()
	f.socket(t, "last")
	f.socket(t, "last") // in its own place
	if _, _, err := websocket.Dial(t.Context(), f.url+"/more", nil); err == nil {
		t.Error("one more than the limit was taken")
	}
	if err := <-f.errs; !errors.Is(err, ErrFull) {
		t.Errorf("refused with %v", err)
	}
	if n := f.StreamStats().Refused; n != 1 {
		t.Errorf("%d are counted as refused", n)
	}
}

// A peer that stops reading costs its queue and is gone after its patience.
func TestPeerThatStopsReadingIsDropped(t *testing.T) {
	f := newFront(t)
	c, _, err := websocket.Dial(t.Context(), f.url+"/lazy", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	if err := c.Write(t.Context(), websocket.MessageBinary, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	ep := f.next(t).from
	s := ep.(*StreamEndpoint).stream
	f.mu.Lock()
	s.patience = 200 * time.Millisecond
	f.mu.Unlock()
	other, _ := f.socket(t, "other")
	flood := datagrams(1, repeat(1400, 128)...)
	for end := time.Now().Add(5 * time.Second); f.StreamStats().Open == 2; {
		if time.Now().After(end) {
			t.Fatal("it is still there")
		}
		begun := time.Now()
		if err := f.Send(flood, ep); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took > time.Second {
			t.Fatalf("sending to it took %v", took)
		}
		s.mu.Lock()
		if s.n > streamQueue {
			t.Errorf("%d datagrams wait", s.n)
		}
		s.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
	if f.StreamStats().Dropped == 0 {
		t.Error("nothing was dropped")
	}
	other.Send(datagrams(1, 10))
	if f.next(t).n != 10 {
		t.Error("the other device noticed")
	}
	if err := f.Send(flood, ep); err != nil {
		t.Errorf("sending to one that is gone: %v", err)
	}
}

func TestQueueKeepsWhatIsFresh(t *testing.T) {
	s := &Stream{wake: make(chan struct{}, 1)}
	for i := range 200 {
		s.Send([][]byte{{byte(i)}})
	}
	if s.Dropped() != 200-streamQueue {
		t.Errorf("%d were dropped", s.Dropped())
	}
	for i := 200 - streamQueue; i < 200; i++ {
		if d, ok := s.pop(); !ok || d.bytes()[0] != byte(i) {
			t.Fatalf("number %d is gone", i)
		}
	}
	if _, ok := s.pop(); ok {
		t.Error("one too many")
	}
}

func TestProbesAreAnsweredToWhoHasTheKey(t *testing.T) {
	f := newFront(t)
	s, _ := f.socket(t, "a")
	c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(f.port)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ask := func(b []byte, patience time.Duration) []byte {
		t.Helper()
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(patience))
		got := make([]byte, 2000)
		n, err := c.Read(got)
		if err != nil {
			return nil
		}
		return got[:n]
	}
	// The Stream is known to the gateway a moment after the upgrade.
	s.Send(datagrams(1, 10))
	f.next(t)
	key := s.Probe()
	got := ask(key.Question(5), 3*time.Second)
	if n, ok := key.Answered(got); !ok || n != 5 || len(got) != probeSize {
		t.Fatalf("answer %x", got)
	}
	stranger := newProbeKey()
	stranger.name = key.name
	flipped := key.Question(9)
	flipped[15] ^= 1
	for name, b := range map[string][]byte{
		"the same again": key.Question(5), "an older one": key.Question(4), "another key": stranger.Question(6), "an unknown name": newProbeKey().Question(6),
		"flipped": flipped, "cut": key.Question(7)[:35], "an answer": key.message(answer, 8),
	} {
		if got := ask(b, 30*time.Millisecond); got != nil {
			t.Errorf("%s was answered with %x", name, got)
		}
	}
	if _, ok := key.Answered(key.Question(5)); ok {
		t.Error("a question is an answer")
	}
	if got := ask(key.Question(6), 3*time.Second); got == nil {
		t.Error("the next one was not answered")
	}
	s.End(errors.New("over"))
	for end := time.Now().Add(3 * time.Second); f.StreamStats().Open != 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if got := ask(key.Question(7), 30*time.Millisecond); got != nil {
		t.Error("answered after the WebSocket ended")
	}
	if f.StreamStats().ProbesAnswered != 2 {
		t.Errorf("stats %+v", f.StreamStats())
	}
}

func TestClosedGatewayTakesNoWebSocket(t *testing.T) {
	f := newFront(t)
	s, _ := f.socket(t, "a")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Done():
	case <-time.After(3 * time.Second):
		t.Error("a WebSocket outlives the gateway")
	}
	if _, _, err := websocket.Dial(t.Context(), f.url+"/b", nil); err == nil {
		t.Error("a closed gateway took one")
	}
	if fns, _, err := f.Open(f.port); err != nil || len(fns) < 2 {
		t.Fatalf("opening again: %v", err)
	}
}

func FuzzProbe(f *testing.F) {
	key := newProbeKey()
	f.Add(key.Question(1))
	f.Add(key.message(answer, 1))
	f.Add([]byte(question))
	f.Fuzz(func(t *testing.T, b []byte) {
		if isProbe(b) {
			_ = probeName(b)
		}
		if n, ok := key.open(question, b); ok && !bytes.Equal(b, key.Question(n)) {
			t.Fatal("two questions with one counter")
		}
		if k, err := ParseProbeKey(string(b)); err == nil && k.String() != string(b) {
			t.Fatal("a key has two spellings")
		}
	})
}
