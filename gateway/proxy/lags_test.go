package proxy

import (
	"testing"
	"time"
)

func TestLags(t *testing.T) {
	var p Proxy
	for _, d := range []time.Duration{-1, 0, 1, 1023, 1024, 1279, 1280, 1535, 1536, 2047, 2048, 20 * time.Microsecond, time.Millisecond, time.Second, time.Minute} {
		class := lagClass(d)
		if d > lagBound(class) && class < lagClasses-1 || class > 0 && d < lagBound(class-1) {
			t.Errorf("%v is in the class that ends at %v", d, lagBound(class))
		}
	}
	before := p.Lags()
	for i := range 100 {
		p.lags.add(time.Duration(i+1) * 10 * time.Microsecond)
	}
	s := p.Lags().Since(before)
	if s.Count != 100 || s.Sum != 50500*time.Microsecond {
		t.Errorf("%d, %v", s.Count, s.Sum)
	}
	for q, want := range map[float64]time.Duration{0.01: 10 * time.Microsecond, 0.5: 500 * time.Microsecond, 0.99: 990 * time.Microsecond, 1: time.Millisecond} {
		if got := s.Quantile(q); got < want*4/5 || got > want*5/4 {
			t.Errorf("quantile %v is %v, want about %v", q, got, want)
		}
	}
	below := s.Below()
	last := uint64(0)
	for _, n := range below {
		last = max(last, n)
	}
	if last != 100 || len(below) != 20 || (Lags{}).Quantile(0.5) != 0 {
		t.Errorf("%v", below)
	}
	later := p.Lags().Since(p.Lags())
	if later.Count != 0 || later.Quantile(0.5) != 0 {
		t.Errorf("%+v", later)
	}
}
