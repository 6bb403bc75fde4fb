package tunnel_test

import (
	"testing"
	"time"
)

// Each connection that a device asks for and gives up costs a decision and a
// dial: after some it is refused before either, and another device is not.
func caseGivenUp(t *testing.T, in *ingress) {
	bad, good := in.wired(t, 0), in.joined(t, 1)
	asked := 0
	for ; asked < 2000; asked++ {
		me, dst := at(inner(0)[0], uint16(20000+asked)), at(app[0], 443)
		got := bad.exchange(tcp4(me, dst, 2, 1, 0), answerPatience)
		if got == nil {
			t.Fatalf("the SYN after %d that were given up is not answered", asked)
		}
		if got[33]&4 != 0 {
			break
		}
		bad.raw.out <- tcp4(me, dst, 4, 2, 0)
	}
	if asked < 200 || asked == 2000 {
		t.Errorf("refused after %d that were given up", asked)
	}
	if n := in.Stats().Restless; n != 1 {
		t.Errorf("%d counted", n)
	}
	roundTrip(t, good.mustDial(t, at(app[0], 443)))
}

// A device that collects refusals gets so many resets, then silence.
func caseResetsAreBounded(t *testing.T, in *ingress) {
	bad, good := in.wired(t, 0), in.joined(t, 1)
	const sent = 6000
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range sent {
			bad.raw.out <- tcp4(at(inner(0)[0], uint16(20000+i)), at(app[0], 1), 2, 1, 0)
		}
	}()
	resets := 0
	for (resets < 1000 || in.Withheld() == 0) && bad.next(answerPatience) != nil {
		resets++
	}
	for sending := true; sending; {
		select {
		case <-bad.raw.in:
			resets++
		case <-done:
			sending = false
		}
	}
	if in.Withheld() == 0 || resets < 1000 {
		t.Errorf("of %d refusals %d are resets, %d silent", sent, resets, in.Withheld())
	}
	if c, err := good.dial(t, at(app[0], 1)); err == nil {
		_ = c.Close()
		t.Error("a closed port is open")
	} else if isTimeout(err) {
		t.Error("another device is not answered any more")
	}
}

// A device whose packets are refused without end is heard less, another is not.
func caseUnheard(t *testing.T, in *ingress) {
	bad, good := in.wired(t, 0), in.joined(t, 1)
	roundTrip(t, good.mustDial(t, at(app[0], 443)))
	in.Exhaust(inner(0)[0])
	for deadline := time.Now().Add(answerPatience); in.Unheard() == 0 && time.Now().Before(deadline); {
		bad.raw.out <- tcp4(at(inner(0)[0], 20000), at(app[0], 1), 2, 1, 0)
		time.Sleep(time.Millisecond)
	}
	if in.Unheard() == 0 {
		t.Error("every packet is heard")
	}
	roundTrip(t, good.mustDial(t, at(app[0], 443)))
}
