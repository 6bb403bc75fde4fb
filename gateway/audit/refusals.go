package audit

import (
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// What one source of refusals writes at most: a burst, then one record per
// interval. Further ones are folded.
const (
	refusalsBurst = 500
	refusalsEvery = 100 * time.Millisecond
	// foldFor is how long a fold gathers before it is written: what is counted
	// and not yet with the kernel is never older.
	foldFor = 5 * time.Second
	// maxFolds bounds the folds of one source. What comes in further forms (a
	// device may ask about any name) shares one for each kind and reason.
	maxFolds = 64
)

// Refusals bounds what one source (a device, all strangers) can make the log
// write by being refused. Whoever may ask may be refused as often as they
// like, but not fill the disk with it: without a log nothing is allowed, to
// anyone. Refusals beyond the bound are counted exactly, in one record of kind
// folded for each kind, device, app and reason and a few seconds.
type Refusals struct {
	log   *Log
	now   func() time.Time
	limit atomic.Pointer[rate.Limiter] // nil before the first: most sources never are refused

	// mu guards folds. The log's fmu may be taken with it held.
	mu    sync.Mutex
	folds map[foldKey]*fold // nil while there are none
}

// foldKey is what the refusals of one fold have in common.
type foldKey struct {
	kind                Kind
	device, app, reason string
}

// fold is refusals that have no record of their own.
type fold struct {
	since         time.Time // of the log's clock: it is due foldFor later
	count         uint64
	first, last   time.Time // of the log's clock
	decisions     [2]string // of the first and the last
	common        Record    // of what all of them have in common
	several, deny bool
}

// NewRefusals returns the bound of one source. now is the clock of the rate.
func NewRefusals(log *Log, now func() time.Time) *Refusals {
	return &Refusals{log: log, now: now}
}

// Note records a refusal by itself or folds it. It never waits, and it loses
// none: what the queue of a log that cannot be written has no room for is
// folded too.
func (r *Refusals) Note(rec Record) {
	if r.limit.Load() == nil {
		r.limit.CompareAndSwap(nil, rate.NewLimiter(rate.Every(refusalsEvery), refusalsBurst))
	}
	if r.limit.Load().AllowN(r.now(), 1) && r.log.noteIfRoom(&rec) {
		return
	}
	r.fold(&rec)
}

func (r *Refusals) fold(rec *Record) {
	now := r.log.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	key := foldKey{rec.Kind, rec.Device, rec.App, rec.Reason}
	f := r.folds[key]
	if f == nil && len(r.folds) >= maxFolds {
		key.device, key.app = "", ""
		f = r.folds[key]
	}
	if f == nil {
		if r.folds == nil {
			r.folds = map[foldKey]*fold{}
			r.log.folding(r)
		}
		f = &fold{
			since: now, first: now, decisions: [2]string{rec.Decision},
			common:  Record{Subject: rec.Subject, Session: rec.Session, Remote: rec.Remote, Revision: rec.Revision},
			several: key.device != rec.Device || key.app != rec.App,
			deny:    rec.Allow != nil && !*rec.Allow,
		}
		r.folds[key] = f
	}
	f.count++
	f.last, f.decisions[1] = now, rec.Decision
	f.common.Subject = same(f.common.Subject, rec.Subject)
	f.common.Session = same(f.common.Session, rec.Session)
	f.common.Remote = same(f.common.Remote, rec.Remote)
	f.common.Revision = same(f.common.Revision, rec.Revision)
}

func same(a, b string) string {
	if a != b {
		return ""
	}
	return a
}

// write queues the folds that are due at now, or all of them, and tells
// whether none are left. What finds no room goes on gathering.
func (r *Refusals) write(now time.Time, all bool) (none bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, f := range r.folds {
		if (all || now.Sub(f.since) >= foldFor) && r.log.noteIfRoom(f.record(key)) {
			delete(r.folds, key)
		}
	}
	if len(r.folds) > 0 {
		return false
	}
	r.folds = nil
	r.log.folded(r)
	return true
}

func (f *fold) record(key foldKey) *Record {
	rec := f.common
	rec.Kind, rec.Device, rec.App, rec.Reason = KindFolded, key.device, key.app, key.reason
	rec.Detail = map[string]string{
		"kind":  string(key.kind),
		"count": strconv.FormatUint(f.count, 10),
		"first": f.first.UTC().Format(time.RFC3339Nano),
		"last":  f.last.UTC().Format(time.RFC3339Nano),
	}
	if f.decisions[0] != "" {
		rec.Detail["first_decision"], rec.Detail["last_decision"] = f.decisions[0], f.decisions[1]
	}
	if f.several {
		rec.Detail["of"] = "several"
	}
	if f.deny {
		no := false
		rec.Allow = &no
	}
	return &rec
}

// folding tells the log that r has folds to write, folded that it has none.
func (l *Log) folding(r *Refusals) {
	l.fmu.Lock()
	defer l.fmu.Unlock()
	l.folders[r] = struct{}{}
}

func (l *Log) folded(r *Refusals) {
	l.fmu.Lock()
	defer l.fmu.Unlock()
	delete(l.folders, r)
}

// writeFolds queues folds that are due, or all there are, and tells whether
// none are left.
func (l *Log) writeFolds(all bool) (none bool) {
	l.fmu.Lock()
	folders := make([]*Refusals, 0, len(l.folders))
	for r := range l.folders {
		folders = append(folders, r)
	}
	l.fmu.Unlock()
	none, now := true, l.now()
	for _, r := range folders {
		none = r.write(now, all) && none
	}
	return none
}
