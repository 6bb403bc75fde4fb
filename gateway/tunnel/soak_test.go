package tunnel_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/gateway/tunnel"
	"github.com/portvakt/portvakt/internal/overlay"
	"github.com/portvakt/portvakt/internal/transport"
)

// soakHours is how much of its devices' life the soak plays. WireGuard's timers
// run on the wall clock and cannot be hurried: what they bring about in an hour
// is done by hand instead, as often.
var soakHours = flag.Float64("soak.hours", 0.1, "hours of each device's life that TestSoak plays; two take about 40 s a mode")

// What happens to a device in an hour of use.
const (
	rekeysHourly = 30 // REKEY_AFTER_TIME is 120 s
	roamsHourly  = 6
	roadsHourly  = 4 // from UDP to a WebSocket, or back
	sleepsHourly = 1 // idle, so that its peer goes
	joinsHourly  = 2 // registered anew with another key, as by a reboot
)

const (
	soakDevices = 32
	// soakParts is how often memory and goroutines are looked at.
	soakParts = 4
	// rekeyApart is just more than the gateway asks for between two initiations
	// of a key.
	rekeyApart = 120 * time.Millisecond
	// soakPatience is how long a device may wait for anything: a lost handshake
	// message is repeated after 5 s, and on a busy machine two in a row may be.
	soakPatience = 25 * time.Second
	// askEvery is the agent's patience with an unanswered question.
	askEvery = 400 * time.Millisecond
)

// TestSoak plays hours of many devices' life in a minute, against both stacks:
// keys are made anew under open connections, devices roam, change from UDP to a
// WebSocket and back, sleep, are removed and register again, while an administrator publishes, adds and removes others.
// Connections must live through all but a removal, and at the end of each part
// nothing may be left of anyone.
func TestSoak(t *testing.T) {
	for _, mode := range []tunnel.Mode{tunnel.Userspace, tunnel.TUN} {
		t.Run(string(mode), func(t *testing.T) {
			if mode == tunnel.TUN {
				needTUN(t)
			}
			soak(t, mode)
		})
	}
}

func soak(t *testing.T, mode tunnel.Mode) {
	var asleep sync.Map // keys that nothing holds
	var flows soakFlows
	var located atomic.Int64
	priv, _ := keyPair()
	in := startConfig(t, tunnel.Config{PrivateKey: priv, Listen: "127.0.0.1:0", Mode: mode}, func(c *tunnel.Config) {
		c.IdleAfter = 300 * time.Millisecond
		c.Held = func(key [32]byte) bool {
			_, ok := asleep.Load(key)
			return !ok
		}
		c.TCP = flows.take
		c.OnEndpoint = func([32]byte, netip.AddrPort) { located.Add(1) }
		c.Keep = func(context.Context, []tunnel.Kept) error { return nil }
	})
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := in.Accept(w, r, r.URL.Path); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	}))
	front.Config.ConnContext = transport.ConnContext
	front.Start()
	t.Cleanup(front.Close)
	var relays []*relay
	for range soakDevices {
		relays = append(relays, newRelay(t, in))
	}
	var did soakCounts
	var after []soakLeft
	for part := range soakParts {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		var work, office sync.WaitGroup
		failed := make(chan error, soakDevices+1)
		for i := range soakDevices {
			work.Go(func() {
				d := &soakDevice{in: in, i: i, relay: relays[i], front: front.URL, did: &did, asleep: &asleep, flows: &flows}
				d.traffic.watch(d.relay)
				if err := d.live(ctx, part); err != nil {
					failed <- fmt.Errorf("part %d, device %d: %w", part, i, err)
					cancel()
				}
			})
		}
		office.Go(func() {
			if err := administrate(ctx, in, &did); err != nil {
				failed <- err
			}
		})
		work.Wait()
		cancel()
		office.Wait()
		close(failed)
		for err := range failed {
			t.Error(err)
		}
		if t.Failed() {
			t.Fatal(in.state())
		}
		after = append(after, whatIsLeft(t, in))
		t.Logf("after part %d: %+v", part+1, after[part])
	}
	t.Logf("%.1f h of %d devices: %d rekeys, %d roams, %d changes of transport, %d sleeps, %d joins and as many removals; beside it %d publishes, %d strangers' registrations; %d places told",
		*soakHours, soakDevices, did.rekeys.Load(), did.roams.Load(), did.roads.Load(), did.sleeps.Load(), did.joins.Load(), did.publishes.Load(), did.strangers.Load(), located.Load())
	t.Logf("refused: %v", in.Refused())
	first, last := after[0], after[len(after)-1]
	// What leaked is there for good; what is only late, on a busy machine, is not.
	for end := time.Now().Add(20 * time.Second); last.exceeds(first) && time.Now().Before(end); {
		last = whatIsLeft(t, in)
	}
	if last.exceeds(first) {
		t.Errorf("goroutines, files or memory grew: %+v, then %+v", first, last)
	}
	if h := in.Handshakes(); h.Registered != 0 || h.Live != 0 {
		t.Errorf("somebody is still registered: %+v", h)
	}
}

// soakCounts is what happened.
type soakCounts struct{ rekeys, roams, roads, sleeps, joins, publishes, strangers atomic.Int64 }

// soakLeft is what the process holds when nobody is connected.
type soakLeft struct {
	goroutines, files int
	heap              uint64 // bytes
}

func (l soakLeft) exceeds(first soakLeft) bool {
	return l.goroutines > first.goroutines || l.files > first.files || l.heap > first.heap+first.heap/10+(1<<20)
}

// whatIsLeft waits for what is on its way out, then looks.
func whatIsLeft(t *testing.T, in *ingress) soakLeft {
	t.Helper()
	in.eventually(t, "everybody is gone", func() bool { return in.Handshakes().Registered == 0 })
	// Twice: what a pool holds survives one collection. Finalizers close files
	// some time after.
	runtime.GC()
	runtime.GC()
	var now soakLeft
	for quiet := 0; quiet < 5; quiet++ {
		time.Sleep(50 * time.Millisecond)
		n, files := runtime.NumGoroutine(), 0
		if list, err := os.ReadDir("/proc/self/fd"); err == nil { // Linux
			files = len(list)
		}
		if n != now.goroutines || files != now.files {
			quiet, now.goroutines, now.files = 0, n, files
		}
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	now.heap = m.HeapAlloc + m.StackInuse
	return now
}

// soakDevice is one device with a connection that is to live through
// everything.
type soakDevice struct {
	in     *ingress
	i      int
	relay  *relay
	front  string // URL of the gateway's public port
	socket bool   // it goes by WebSocket now
	did    *soakCounts
	asleep *sync.Map
	flows  *soakFlows

	c    *client
	conn net.Conn

	step, before string // what it did last
	since        time.Time
	traffic      soakTraffic // since then
}

// begin notes what the device does next.
func (d *soakDevice) begin(step string) {
	d.before, d.step, d.since = d.step, step, time.Now()
	d.traffic.begin()
}

// soakFlows echoes, and cuts what a removed device has open, as the tunnel's
// owner does.
type soakFlows struct {
	mu   sync.Mutex
	open map[netip.Addr]map[net.Conn]bool // by the device's address
}

func (f *soakFlows) take(r tunnel.TCPRequest) {
	c, err := r.Accept(context.Background())
	if err != nil {
		return
	}
	from := r.Peer().Addr()
	f.mu.Lock()
	if f.open == nil {
		f.open = map[netip.Addr]map[net.Conn]bool{}
	}
	if f.open[from] == nil {
		f.open[from] = map[net.Conn]bool{}
	}
	f.open[from][c] = true
	f.mu.Unlock()
	_, _ = io.Copy(c, c)
	_ = c.Close()
	f.mu.Lock()
	delete(f.open[from], c)
	f.mu.Unlock()
}

func (f *soakFlows) cut(of [2]netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range of {
		for c := range f.open[a] {
			switch r := c.(type) {
			case interface{ Reset() }:
				r.Reset()
			case interface{ SetLinger(sec int) error }:
				_ = r.SetLinger(0)
			}
			_ = c.Close()
		}
		delete(f.open, a)
	}
}

// live plays the device's share of one part.
func (d *soakDevice) live(ctx context.Context, part int) error {
	// Of n events the part gets those between its shares of them.
	due := func(hourly float64) int {
		n := max(1, hourly**soakHours)
		return int(n*float64(part+1)/soakParts+0.5) - int(n*float64(part)/soakParts+0.5)
	}
	joins := max(1, due(joinsHourly))
	rekeys, roams, roads, sleeps := due(rekeysHourly), due(roamsHourly), due(roadsHourly), due(sleepsHourly)
	for join := range joins {
		if err := d.join(); err != nil {
			return fmt.Errorf("joining: %w", err)
		}
		share := func(n int) int { return n*(join+1)/joins - n*join/joins }
		err := repeat(ctx, share(rekeys), d.rekey, d.check)
		if err == nil {
			err = repeat(ctx, share(roams), d.roam, d.check)
		}
		if err == nil {
			err = repeat(ctx, share(roads), d.change, d.check, d.rekey, d.check)
		}
		if err == nil {
			err = repeat(ctx, share(sleeps), d.sleep, d.rekey, d.check)
		}
		if err := errors.Join(err, d.leave()); err != nil {
			return err
		}
	}
	return nil
}

func repeat(ctx context.Context, n int, steps ...func() error) error {
	for range n {
		for _, step := range steps {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := step(); err != nil {
				return err
			}
		}
	}
	return nil
}

// join registers a fresh key and opens the connection.
func (d *soakDevice) join() error {
	d.begin("joining")
	d.c = newClient()
	addrs := inner(d.i)
	var es []segment.Entry
	for _, a := range app {
		es = append(es, segment.Entry{Addr: a, Proto: segment.ProtoTCP, Port: 443})
	}
	d.in.table.Set(addrs, es)
	if err := d.in.AddPeer(tunnel.Peer{Key: d.c.pub, PresharedKey: d.c.psk, Addresses: addrs}); err != nil {
		return err
	}
	var err error
	if d.c.stack, err = overlay.New(overlay.Options{Addresses: addrs[:]}); err != nil {
		return err
	}
	if err := d.c.bring(d.in, d.c.stack.Device(), d.relay.addr); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), soakPatience)
	defer cancel()
	if d.conn, err = d.c.stack.DialTCP(ctx, at(app[d.i%2], 443)); err != nil {
		return fmt.Errorf("dialling: %w; %s", err, d.state())
	}
	d.did.joins.Add(1)
	return d.check()
}

// check sends something there and back on the connection.
func (d *soakDevice) check() error {
	if err := d.conn.SetDeadline(time.Now().Add(soakPatience)); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	asking := make(chan struct{})
	go func() {
		defer close(asking)
		d.ask(ctx)
	}()
	defer func() {
		cancel()
		<-asking
	}()
	b := make([]byte, 3000) // three packets
	b[0], b[2999] = byte(d.i), 1
	if _, err := d.conn.Write(b); err != nil {
		return fmt.Errorf("writing on the old connection: %w; %s", err, d.state())
	}
	got := make([]byte, len(b))
	if n, err := io.ReadFull(d.conn, got); err != nil {
		return fmt.Errorf("reading on the old connection, %d of %d bytes came: %w; %s", n, len(b), err, d.state())
	}
	if string(got) != string(b) {
		return errors.New("the echo is another's")
	}
	return nil
}

// ask sends the gateway something every now and then while an answer is waited
// for, as the agent does. A datagram of the road the device had before that
// arrives after one of the new road takes WireGuard's answers back there, to
// nobody, until the device sends something. A stock WireGuard leaves that to TCP;
// where the connection's SYN waited for a slow handshake, TCP repeats itself after
// three times as long.
func (d *soakDevice) ask(ctx context.Context) {
	peer := fmt.Sprintf("public_key=%x\nupdate_only=true\npersistent_keepalive_interval=", d.in.PublicKey())
	for sleepFor(ctx, askEvery); ctx.Err() == nil; sleepFor(ctx, askEvery) {
		_ = d.c.dev.IpcSet(peer + "25\n") // turning it on sends one
		_ = d.c.dev.IpcSet(peer + "0\n")
	}
}

// rekey makes WireGuard begin anew with the next packet: its own clock would
// after two minutes.
func (d *soakDevice) rekey() error {
	time.Sleep(rekeyApart)
	d.begin("rekey")
	d.did.rekeys.Add(1)
	return d.c.dev.IpcSet(fmt.Sprintf("public_key=%x\nremove=true\n", d.in.PublicKey()) + d.c.gateway(d.in, d.relay.addr))
}

// roam gives the device another outer address.
func (d *soakDevice) roam() error {
	d.begin("roam")
	d.did.roams.Add(1)
	_, err := d.relay.moveTo(net.IPv4(127, 0, 0, byte(1+d.did.roams.Load()%200)))
	return err
}

// change goes from UDP to a WebSocket or back, as the agent does when its
// network blocks UDP or no longer does.
func (d *soakDevice) change() error {
	d.did.roads.Add(1)
	if d.socket {
		d.socket = false
		return d.roam()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, fmt.Sprintf("%s/device-%d", d.front, d.i), nil)
	if err != nil {
		return fmt.Errorf("opening a WebSocket: %w", err)
	}
	d.begin("change of transport")
	d.socket = true
	d.relay.change(socketRoad{c})
	return nil
}

// socketRoad is a WebSocket to the gateway's public port.
type socketRoad struct{ c *websocket.Conn }

func (s socketRoad) Read(b []byte) (int, error) {
	_, data, err := s.c.Read(context.Background())
	return copy(b, data), err
}

func (s socketRoad) Write(b []byte) (int, error) {
	return len(b), s.c.Write(context.Background(), websocket.MessageBinary, b)
}

func (s socketRoad) Close() error { return s.c.CloseNow() }

// sleep waits until nothing but the registration is left of the device.
func (d *soakDevice) sleep() error {
	d.begin("sleep")
	d.asleep.Store(d.c.pub, true)
	defer d.asleep.Delete(d.c.pub)
	for deadline := time.Now().Add(20 * time.Second); d.in.live(d.c.pub); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("its idle peer does not go; %s", d.state())
		}
	}
	d.did.sleeps.Add(1)
	return nil
}

// leave takes the key away: the connection must be dead from then on.
func (d *soakDevice) leave() error {
	defer d.c.stop()
	if err := d.in.RemovePeer(d.c.pub); err != nil {
		return err
	}
	_ = d.conn.SetDeadline(time.Now().Add(30 * time.Millisecond))
	_, werr := d.conn.Write([]byte("x"))
	if n, err := d.conn.Read(make([]byte, 1)); err == nil {
		return fmt.Errorf("a removed device still got %d bytes (writing: %v)", n, werr)
	}
	d.flows.cut(inner(d.i))
	if d.socket {
		if err := d.change(); err != nil {
			return err
		}
	}
	return d.conn.Close()
}

// administrate publishes, registers and removes others and reads what a console
// and a scraper do, until ctx ends.
func administrate(ctx context.Context, in *ingress, did *soakCounts) error {
	for n := 0; ctx.Err() == nil; n++ {
		addrs := inner(100 + n%50)
		in.table.Set(addrs, []segment.Entry{{Addr: app[0], Proto: segment.ProtoTCP, Port: uint16(1 + n%1000)}})
		did.publishes.Add(1)
		_, key := keyPair()
		if err := in.AddPeer(tunnel.Peer{Key: key, Addresses: addrs}); err != nil {
			return fmt.Errorf("registering a stranger: %w", err)
		}
		_, _, _ = in.Peers(), in.Handshakes(), in.Refused()
		if err := in.RemovePeer(key); err != nil {
			return fmt.Errorf("removing a stranger: %w", err)
		}
		in.table.Set(addrs, nil)
		did.strangers.Add(1)
		sleepFor(ctx, 2*time.Millisecond)
	}
	return nil
}

func sleepFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
