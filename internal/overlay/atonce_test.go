package overlay_test

import (
	"testing"

	"github.com/portvakt/portvakt/internal/overlay"
)

// A program opens 64 connections at once while some that it opened before are not
// established yet: none is refused.
func TestSixtyFourAtOnce(t *testing.T) {
	const may = 64 + 6
	waiting := make(chan *overlay.TCPRequest, may)
	p := join(t, overlay.Options{TCP: func(r *overlay.TCPRequest) { waiting <- r }}).start(t)
	errs := make(chan error, may)
	for range may + 1 {
		go func() {
			c, err := dial(t, p.agent, at(app[0], 443))
			if err == nil {
				err = c.Close()
			}
			errs <- err
		}()
	}
	var held []*overlay.TCPRequest
	for range may + 1 {
		select {
		case r := <-waiting:
			held = append(held, r)
		case err := <-errs:
			t.Fatalf("beside %d that wait: %v", len(held), err)
		}
	}
	for _, r := range held {
		echo(r)
	}
	for range held {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
