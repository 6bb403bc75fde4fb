package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/http1"
)

// An exchange that was aborted while it had no connection to its app gets none:
// the next one is ended before anything is sent on it.
func TestAbortedExchangesHoldNothing(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	pool := http1.NewPool(http1.Options{
		Dial:   func(context.Context) (net.Conn, error) { return ours, nil },
		Budget: http1.NewBudget(1),
	})
	defer pool.Close()
	c, err := pool.Dial(t.Context(), http1.Holder{}, netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	x := exchange{}
	x.held.abort()
	if x.held.hold(c) {
		t.Fatal("it goes on")
	}
	_ = theirs.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := theirs.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		t.Errorf("the app's connection stays: %v", err)
	}
	c.Release(false)
	if x.held.let() {
		t.Error("its connection may be used again")
	}
}
