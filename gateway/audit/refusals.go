package audit

import (
	"maps"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// What one source of refusals writes at most: a burst, then one record per
// interval.
const (
	refusalsBurst = 500
	refusalsEvery = 100 * time.Millisecond
)

// Refusals bounds what one source (a device, all strangers) can make the log
// write by being refused. Whoever may ask may be refused as often as they
// like, but not fill the disk with it: without a log nothing is allowed, to
// anyone. Refusals beyond the bound are counted, and the next record that is
// written says how many were left out, in detail.unrecorded_before.
type Refusals struct {
	log     *Log
	now     func() time.Time
	limit   atomic.Pointer[rate.Limiter] // nil before the first: most sources never are refused
	skipped atomic.Uint64
}

// NewRefusals returns the bound of one source. now is the clock of the rate.
func NewRefusals(log *Log, now func() time.Time) *Refusals {
	return &Refusals{log: log, now: now}
}

// Note records a refusal, or counts it. It never waits.
func (r *Refusals) Note(rec Record) {
	if r.limit.Load() == nil {
		r.limit.CompareAndSwap(nil, rate.NewLimiter(rate.Every(refusalsEvery), refusalsBurst))
	}
	if !r.limit.Load().AllowN(r.now(), 1) {
		r.skipped.Add(1)
		return
	}
	if n := r.skipped.Swap(0); n > 0 {
		detail := map[string]string{"unrecorded_before": strconv.FormatUint(n, 10)}
		maps.Copy(detail, rec.Detail)
		rec.Detail = detail
	}
	r.log.Note(rec)
}
