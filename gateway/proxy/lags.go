package proxy

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// lagClasses is how many classes of time there are: four an octave, from 1 us
// to 1 s. What took less or longer is in the first or the last.
const lagClasses = 1 + 4*20 + 1

// lags counts how long requests to http:// apps were with the gateway: from the
// end of their parsing until the first byte to the app was written, decision,
// record and assertion included. A request that had to dial is not among them.
type lags struct {
	classes [lagClasses]atomic.Uint64
	sum     atomic.Int64
}

func (l *lags) add(d time.Duration) {
	l.classes[lagClass(d)].Add(1)
	l.sum.Add(int64(d))
}

func lagClass(d time.Duration) int {
	octave := bits.Len64(uint64(max(d, 0))) - 11 // of 1,024 ns
	if octave < 0 {
		return 0
	}
	return min(1+4*octave+int(d>>(octave+8)&3), lagClasses-1)
}

// lagBound is where a class ends.
func lagBound(class int) time.Duration {
	return time.Duration(4+class%4) << (8 + class/4)
}

// Lags are how long requests to http:// apps were with the gateway, from the end
// of their parsing until the first byte was written to the app.
type Lags struct {
	Count   uint64
	Sum     time.Duration
	classes [lagClasses]uint64
}

// Lags returns those of all requests since New that found a connection to their
// app; the others had to wait for the app first.
func (p *Proxy) Lags() Lags {
	var s Lags
	for i := range s.classes {
		s.classes[i] = p.lags.classes[i].Load()
		s.Count += s.classes[i]
	}
	s.Sum = time.Duration(p.lags.sum.Load())
	return s
}

// Since returns what came after an earlier reading.
func (s Lags) Since(earlier Lags) Lags {
	s.Count -= earlier.Count
	s.Sum -= earlier.Sum
	for i := range s.classes {
		s.classes[i] -= earlier.classes[i]
	}
	return s
}

// Quantile is what a part q of them did not exceed; zero for none at all. Within
// a class, which ends a quarter or less above its beginning, they count as evenly
// spread.
func (s Lags) Quantile(q float64) time.Duration {
	need := q * float64(s.Count)
	for i, n := range s.classes {
		if n := float64(n); n > 0 && n >= need {
			begin := time.Duration(0)
			if i > 0 {
				begin = lagBound(i - 1)
			}
			return begin + time.Duration(need/n*float64(lagBound(i)-begin))
		}
		need -= float64(n)
	}
	return 0
}

// Below returns how many took at most so many seconds, for a few bounds.
func (s Lags) Below() map[float64]uint64 {
	below := map[float64]uint64{}
	var n uint64
	for i := range s.classes {
		if n += s.classes[i]; i%4 == 0 && i > 0 {
			below[lagBound(i).Seconds()] = n
		}
	}
	return below
}
