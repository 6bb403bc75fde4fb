package halfopen

import (
	"net/netip"
	"testing"
	"time"
)

func addr(i int) netip.Addr { return netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}) }

// clocked is a Table whose time stands still but for wait.
func clocked(perSource int, of func(netip.Addr) netip.Addr) (t *Table, wait func(time.Duration)) {
	t = New(perSource, of)
	now := time.Unix(1000, 0)
	t.now = func() time.Time { return now }
	return t, func(d time.Duration) { now = now.Add(d) }
}

func TestPlacesOfASource(t *testing.T) {
	table, _ := clocked(2, func(a netip.Addr) netip.Addr {
		if a == addr(2) { // the other address of one device
			return addr(1)
		}
		return a
	})
	for i, c := range []struct {
		from netip.Addr
		want Verdict
	}{{addr(1), Admitted}, {addr(2), Admitted}, {addr(1), Crowded}, {addr(2), Crowded}, {addr(3), Admitted}} {
		if would := table.Would(c.from); would != c.want {
			t.Errorf("%d: would be %d, want %d", i, would, c.want)
		}
		if _, v := table.Admit(c.from); v != c.want {
			t.Errorf("%d: %d, want %d", i, v, c.want)
		}
	}
	table.Leave(addr(1), false)
	if _, v := table.Admit(addr(2)); v != Admitted {
		t.Errorf("a place was not given back: %d", v)
	}
	table.Close()
	if _, v := table.Admit(addr(9)); v != Crowded {
		t.Errorf("after Close: %d", v)
	}
}

func TestPlacesOfAll(t *testing.T) {
	table, _ := clocked(1, nil)
	for i := range Total {
		if _, v := table.Admit(addr(i)); v != Admitted {
			t.Fatalf("%d: %d", i, v)
		}
	}
	if _, v := table.Admit(addr(Total)); v != Crowded {
		t.Errorf("one past all: %d", v)
	}
}

// Connections that were given up count until time forgives them; those that
// came about, or were refused, do not.
func TestGivenUp(t *testing.T) {
	table, wait := clocked(0, nil)
	ask := func(a netip.Addr, givenUp bool) Verdict {
		of, v := table.Admit(a)
		if v == Admitted {
			table.Leave(of, givenUp)
		}
		return v
	}
	for range 10 * burst {
		if v := ask(addr(1), false); v != Admitted {
			t.Fatalf("one that gives nothing up: %d", v)
		}
	}
	for i := range burst {
		if v := ask(addr(1), true); v != Admitted {
			t.Fatalf("%d given up: %d", i, v)
		}
	}
	if v := ask(addr(1), true); v != Restless {
		t.Errorf("%d given up: %d", burst, v)
	}
	if v := ask(addr(2), true); v != Admitted {
		t.Errorf("another source: %d", v)
	}
	wait(time.Second / perSecond)
	if v, again := ask(addr(1), true), ask(addr(1), true); v != Admitted || again != Restless {
		t.Errorf("after the time of one: %d, then %d", v, again)
	}
	wait(time.Hour)
	n := 0
	for ask(addr(1), true) == Admitted {
		n++
	}
	if n != burst {
		t.Errorf("after an hour %d, want %d", n, burst)
	}
}

// What waits may be given up, too: a source that has nothing left gets no 64
// more at a time.
func TestGivenUpAllAtOnce(t *testing.T) {
	table, wait := clocked(0, nil)
	admitted := 0
	for range 100 {
		var open []netip.Addr
		for {
			of, v := table.Admit(addr(1))
			if v != Admitted {
				break
			}
			open = append(open, of)
		}
		admitted += len(open)
		for _, of := range open {
			table.Leave(of, true)
		}
	}
	if admitted > burst {
		t.Errorf("%d were let in, want at most %d", admitted, burst)
	}
	wait(time.Hour)
	if v := table.Would(addr(1)); v != Admitted {
		t.Errorf("after an hour: %d", v)
	}
}

// Sources that have nothing to be remembered for are forgotten.
func TestSourcesAreForgotten(t *testing.T) {
	table, wait := clocked(0, nil)
	for i := range 20 * tidyEvery {
		of, v := table.Admit(addr(i))
		if v != Admitted {
			t.Fatal(v)
		}
		table.Leave(of, true)
		wait(10 * time.Millisecond)
		if n := len(table.sources); n > tidyEvery+2*perSecond {
			t.Fatalf("after %d sources %d are remembered", i, n)
		}
	}
	of, _ := table.Admit(addr(60000))
	table.Leave(of, false)
	if _, ok := table.sources[addr(60000)]; ok {
		t.Error("a source that gave nothing up is remembered")
	}
}
