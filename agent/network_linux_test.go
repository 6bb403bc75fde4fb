package agent_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/agent"
	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/internal/wire"
)

// helper is a network helper that sets nothing and remembers what it is told.
type helper struct {
	t       *testing.T
	manager string // that it names

	mu   sync.Mutex
	fail bool     // guarded by mu; refuse what is set
	sets [][]byte // guarded by mu
	dns  []string // guarded by mu; the names of each message, "" for none
}

func newHelper(t *testing.T, l *laptop, manager string) *helper {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: agents speak to root's helper only")
	}
	h := &helper{t: t, manager: manager}
	socket := filepath.Join(filepath.Dir(l.cfg.State.File("")), "net.sock")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			work.Go(func() { h.serve(c) })
		}
	})
	// Before the agent is stopped, which ends its connection.
	t.Cleanup(func() {
		ln.Close()
		work.Wait()
	})
	l.cfg.TUN = &agent.TUN{HelperSocket: socket}
	return h
}

func (h *helper) serve(c *net.UnixConn) {
	defer c.Close()
	tun, err := os.Open(os.DevNull)
	if err != nil {
		h.t.Error(err)
		return
	}
	defer tun.Close()
	msg := make([]byte, 1<<20)
	for {
		n, err := c.Read(msg)
		if err != nil || n == 0 {
			return
		}
		answer, oob := []byte{0}, []byte(nil)
		h.mu.Lock()
		switch msg[0] {
		case 1:
			answer, oob = append(answer, "portvakt0"...), unix.UnixRights(int(tun.Fd()))
		case 2:
			h.sets = append(h.sets, bytes.Clone(msg[:n]))
			if h.fail {
				answer = []byte("\x01no")
			}
		case 3:
			names := h.names(msg[1:n])
			h.dns = append(h.dns, names)
			if names != "" {
				answer = append(answer, h.manager+"\n"...)
			}
		}
		h.mu.Unlock()
		if _, _, err := c.WriteMsgUnix(answer, oob, nil); err != nil {
			return
		}
	}
}

func (h *helper) names(b []byte) string {
	count := int(b[0])
	for b = b[1:]; count > 0; count-- {
		b = b[1+int(b[0]):]
	}
	var names []string
	n := binary.BigEndian.Uint16(b)
	for b = b[2:]; n > 0; n-- {
		names = append(names, string(b[1:1+int(b[0])]))
		b = b[1+int(b[0]):]
	}
	return strings.Join(names, " ")
}

// told waits until all that DNS was given, message by message, is as wanted.
func (h *helper) told(what string, want ...string) {
	h.t.Helper()
	var all []string
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		h.mu.Lock()
		all = slices.Clone(h.dns)
		h.mu.Unlock()
		if slices.Equal(all, want) {
			return
		}
	}
	h.t.Fatalf("%s: the helper was told of %q and not %q", what, all, want)
}

// A name that the agent needs itself goes to no manager, and when one does not
// resolve everything is put back.
func TestDNSLeavesTheWayToTheGateway(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	h := newHelper(t, l, "systemd-resolved")
	l.cfg.Endpoint = "gateway.example.invalid.:51820"
	var mu sync.Mutex
	var fault error
	l.cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		mu.Lock()
		err := fault
		mu.Unlock()
		if err != nil {
			return nil, err
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	l.g.SetState(func(s *wire.State) {
		s.Apps = []wire.App{{Name: "crm", Protocol: "http", Hosts: []string{"crm.example.invalid"}}, {Name: "www", Protocol: "http", Hosts: []string{"example.invalid"}}}
	})
	l.start()
	h.told("connected", "crm.example.invalid")
	st := l.until("the name left out is told", func(st *localapi.Status) bool { return st.DNS != nil && st.DNS.Problem != "" })
	if !strings.Contains(st.DNS.Problem, "example.invalid would take gateway.example.invalid along") || st.DNS.Manager != "systemd-resolved" {
		t.Errorf("DNS %+v", st.DNS)
	}
	mu.Lock()
	fault = &net.OpError{Op: "dial", Err: &net.DNSError{Name: "gateway.example.invalid", Err: "refused"}}
	mu.Unlock()
	l.sleep()
	h.told("a name does not resolve", "crm.example.invalid", "")
	mu.Lock()
	fault = nil
	mu.Unlock()
	h.told("connected again", "crm.example.invalid", "", "crm.example.invalid")
	l.stop()
}

// What a login brought is not set once its link has ended.
func TestNothingIsSetAfterALinksEnd(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	h := newHelper(t, l, "resolv.conf")
	held, let := make(chan struct{}), make(chan struct{})
	var hold sync.Once
	waiting := false // guarded by l.mu
	l.sleep = agent.Twin(&l.cfg, l.g.Dial, func([]netip.Addr) {
		l.mu.Lock()
		w := waiting
		l.mu.Unlock()
		if w {
			hold.Do(func() { close(held); <-let })
		}
	}, func([]netip.AddrPort) {})
	l.g.SetState(func(s *wire.State) { s.Apps = apps(crm) })
	l.start()
	h.told("connected", "crm.example")
	l.g.SetState(func(s *wire.State) { s.Apps = nil })
	h.told("no apps", "crm.example", "")
	l.mu.Lock()
	waiting = true
	l.mu.Unlock()
	l.g.Refuse(wire.PathConnect, &wire.Error{Code: "x", Message: "Not now."})
	l.g.NextState(func(s *wire.State) { s.Apps = apps(crm) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = l.api.Logout(context.WithoutCancel(t.Context()))
	}()
	<-held
	l.sleep()
	time.Sleep(300 * time.Millisecond) // for the link to end, which it must not yet
	close(let)
	<-done
	h.told("the link has ended", "crm.example", "", "crm.example", "")
	l.stop()
}

// A Set that failed is asked for again, also when it would change nothing.
func TestAFailedSetIsAskedForAgain(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	h := newHelper(t, l, "systemd-resolved")
	l.start()
	l.until("connecting", is(localapi.StateConnected))
	h.mu.Lock()
	h.fail = true
	h.mu.Unlock()
	// Another user: the helper refuses, and the link ends of it.
	l.g.SetState(func(s *wire.State) {
		s.Session = &wire.Session{ID: "s", OSUser: "1001:anna", ExpiresAt: l.now().Add(time.Hour)}
	})
	l.until("the refusal", func(st *localapi.Status) bool { return st.Trouble != nil && st.Trouble.Code == "interface" })
	l.g.SetState(func(s *wire.State) { s.Session = nil }) // as it was before
	h.mu.Lock()
	before := len(h.sets)
	h.fail = false
	h.mu.Unlock()
	l.until("connected again", is(localapi.StateConnected))
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.sets) == before {
		t.Error("the helper was not asked again")
	}
}
