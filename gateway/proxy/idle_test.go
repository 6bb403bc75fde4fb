//go:build unix

package proxy_test

import (
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/proxy"
)

// A device that opens connections and sends nothing has 2,048 of them, each of
// which costs little; the others are refused and counted, and end nobody's.
func TestIdleConnections(t *testing.T) {
	const most, more = 2048, 200
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil || files.Cur < 5*(most+more) {
		t.Skipf("needs %d open files, has %d: this process holds both ends of every connection", 5*(most+more), files.Cur)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var held []net.Conn
	go func() { // an app that holds what comes and says a byte
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("!"))
			mu.Lock()
			held = append(held, c)
			mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range held {
			_ = c.Close()
		}
	})
	// At the pace of one device this would take most of a minute: each counts as a
	// device of its own, but for its Flows.
	var n atomic.Uint32
	w := newWorld(t, []string{deskYAML}, map[string]string{"desk": l.Addr().String()}, func(c *proxy.Config) {
		c.Device = func(netip.Addr) netip.Addr {
			i := n.Add(1)
			return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		}
	})
	open := func() (net.Conn, bool) {
		c, err := w.open("desk", 7000)
		if err != nil {
			return nil, false
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = c.Read(make([]byte, 1))
		if err != nil && !isReset(err) {
			t.Fatalf("neither served nor reset: %v", err)
		}
		return c, err == nil
	}
	first, ok := open()
	if !ok {
		t.Fatal("the first connection is refused")
	}
	flows := w.manager.Counts().Flows
	before := memory()
	var last net.Conn
	for i := flows; i < most; i++ {
		if last, ok = open(); !ok {
			t.Fatalf("connection %d is refused", i+1)
		}
	}
	each := (memory() - before) / int64(most-flows)
	t.Logf("%d bytes for an idle connection, the test's own ends included", each)
	// Two pumps with 4 KiB each, their stacks, the Flow with its record.
	if each > 48<<10 {
		t.Errorf("an idle connection holds %d bytes", each)
	}
	for range more {
		if _, ok := open(); ok {
			t.Fatal("one too many is served")
		}
	}
	if c := w.manager.Counts(); c.Crowded != more || c.Flows != most {
		t.Errorf("%+v", c)
	}
	if n := memory() - before; n > 48<<10*most+8<<20 {
		t.Errorf("the refused ones hold memory: %d KiB in all", n>>10)
	}
	_ = last.(*net.TCPConn).SetLinger(0) // a reset: the app ends nothing by itself
	_ = last.Close()
	for end := time.Now().Add(5 * time.Second); w.manager.Counts().Flows == most; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a closed connection still counts")
		}
	}
	if _, ok := open(); !ok {
		t.Error("there is no room again")
	}
	_ = first.SetDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := first.Read(make([]byte, 1)); isReset(err) {
		t.Errorf("the first connection is gone: %v", err)
	}
}

// memory is what heap and stacks hold once the heap was looked through.
func memory() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
