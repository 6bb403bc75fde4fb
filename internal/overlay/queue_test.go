package overlay

import (
	"errors"
	"os"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// packetOf is what the stack sends of a connection, or with none as the answer
// to a stranger.
func packetOf(flags byte, none bool) *stack.PacketBuffer {
	p := segment{flags: flags, data: pattern(1)}.super(1000)
	if none {
		p.GSOOptions = stack.GSO{}
	}
	return p
}

func TestQueueFull(t *testing.T) {
	for _, tc := range []struct {
		name    string
		packet  *stack.PacketBuffer
		dropped uint64
		taken   bool
	}{
		{"data", packetOf(ack, false), 1, false},
		{"a connection's reset", packetOf(ack|rst, false), 1, true},
		{"the answer to a stranger", packetOf(ack|rst, true), 1, false},
	} {
		q := newQueue()
		for range queuePackets {
			if !q.push(packetOf(ack, false)) {
				t.Fatal("no room")
			}
		}
		if got := q.push(tc.packet); got != tc.taken || q.dropped.Load() != tc.dropped || q.waiting() != queuePackets {
			t.Errorf("%s: %v, %d dropped, %d wait", tc.name, got, q.dropped.Load(), q.waiting())
		}
		q.shut()
	}
}

func TestQueueIsBoundedInBytes(t *testing.T) {
	q := newQueue()
	n := 0
	for ; q.bytes < queueBytes; n++ {
		q.push(segment{flags: ack, data: pattern(60000)}.super(1000))
	}
	if n > queueBytes/60000+1 {
		t.Errorf("%d long packets were taken", n)
	}
	// A sender waits until half is gone, and not longer than it has to.
	done := make(chan bool, 1)
	go func() { done <- q.push(packetOf(ack, false)) }()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		q.mu.Lock()
		waits := q.senders
		q.mu.Unlock()
		if waits == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nobody waits")
		}
	}
	for range n/2 + 1 {
		_, p, err := q.pop(false)
		if err != nil || p == nil {
			t.Fatalf("pop: %v", err)
		}
		p.DecRef()
	}
	if !<-done {
		t.Error("the sender that waited was not let in")
	}
	q.inject([]byte{1})
	if b, p, err := q.pop(true); len(b) != 1 || p != nil || err != nil {
		t.Errorf("an injected packet goes first; got %v, %v, %v", b, p, err)
	}
	q.shut()
	if _, _, err := q.pop(true); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	if q.push(packetOf(ack, false)) || q.inject([]byte{1}) {
		t.Error("a queue that is shut takes packets")
	}
}
