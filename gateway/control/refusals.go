package control

import (
	"maps"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/portvakt/portvakt/gateway/audit"
)

// Whoever reaches the public port may be refused as often as they like, but not
// fill the disk with it: without a log nothing is allowed, to anyone.
const (
	refusalsBurst = 500
	refusalsEvery = 100 * time.Millisecond // one record per this, beyond the burst
)

// refusals records refusals up to a rate, and how many it left out with the
// next one it records.
type refusals struct {
	log     *audit.Log
	now     func() time.Time
	limit   *rate.Limiter
	skipped atomic.Uint64
}

func newRefusals(cfg Config) *refusals {
	return &refusals{log: cfg.Audit, now: cfg.Now, limit: rate.NewLimiter(rate.Every(refusalsEvery), refusalsBurst)}
}

func (r *refusals) note(rec audit.Record) {
	if !r.limit.AllowN(r.now(), 1) {
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
