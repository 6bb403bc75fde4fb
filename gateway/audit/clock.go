package audit

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/renameio/v2"
)

const (
	// maxLeap is how far the wall clock may be from what is believed, and from one
	// look at it to the next, in either direction; less when something is kept for
	// less than two of it.
	maxLeap = 7 * 24 * time.Hour
	// leapAges is for how long the gateway has to run with a clock that leapt
	// until it is believed by itself.
	leapAges = 7 * 24 * time.Hour
	// clockFile holds what is believed, beside the log.
	clockFile = "clock.json"
)

// ErrClockBelieved is returned when there is no leap to trust.
var ErrClockBelieved = errors.New("the clock did not leap")

// clock says what time it is for whoever destroys what is old: the wall clock's,
// as far as there is evidence for it. Evidence is what was believed last, kept
// in a file, and the time that passed since while this process ran; at the very
// first the newest record that was there before this process wrote any. A clock
// that leaps is not believed until it leapt back, it was long so, or somebody
// says that it is right. Until then what is believed goes on with the time that
// passes.
type clock struct {
	path string

	// mu guards what follows. Nothing is taken with it held.
	mu     sync.Mutex
	read   bool          // the file was, or was found missing
	broken bool          // it could not be read
	failed error         // what the last look at what is old failed for
	most   time.Duration // the leap that is believed
	state  clockState
	looked time.Time // with its monotonic reading: when state was brought up to date
	// What was believed at a time of this process: small leaps, one after the
	// other, do not carry it to another day. It is not older than leapAges.
	anchor, anchored time.Time
	leap             time.Duration // how far the wall clock is from it; 0 while it is believed
	trusted          chan struct{} // capacity 1: look again
}

// clockState is the form of the file.
type clockState struct {
	Believed time.Time `json:"believed"`
	// Leap is how far the wall clock was from that, and Aged how long it has
	// been, in seconds.
	Leap int64 `json:"leap_seconds,omitempty"`
	Aged int64 `json:"leapt_for_seconds,omitempty"`
}

// now returns what is to be believed when the wall clock shows wall. An error
// says that nothing is: what is believed could not be read or kept.
func (c *clock) now(wall, newest time.Time) (time.Time, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.load(wall, newest); err != nil {
		c.broken = true
		return time.Time{}, err
	}
	c.broken = false
	next, at := c.state, time.Now()
	passed := at.Sub(c.looked)
	next.Believed = next.Believed.Add(passed)
	leap := wall.Sub(next.Believed)
	was := time.Duration(next.Leap) * time.Second
	switch {
	case leap.Abs() <= c.most:
		leap = 0
	case was == 0 || (leap-was).Abs() > c.most: // it leapt, or leapt anew
		next.Aged = 0
	default:
		next.Aged += int64(passed / time.Second)
	}
	if leap == 0 || next.Aged >= int64(leapAges/time.Second) {
		next, leap = clockState{Believed: wall}, 0
	}
	next.Leap = int64(leap / time.Second)
	if err := c.save(next); err != nil {
		return time.Time{}, err
	}
	c.looked, c.leap = at, leap
	if at.Sub(c.anchored) >= leapAges {
		c.anchor, c.anchored = next.Believed, at
	}
	if next.Believed.After(wall) {
		return wall, nil
	}
	return next.Believed, nil
}

// load reads the file once. mu is held.
func (c *clock) load(wall, newest time.Time) error {
	if c.read {
		return nil
	}
	text, err := os.ReadFile(c.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if c.state.Believed = newest; newest.IsZero() {
			c.state.Believed = wall // a new log: there is nothing that is old
		}
	case err != nil:
		return fmt.Errorf("reading what the clock showed: %w; when the machine's clock is right, portvakt-gateway audit trust-clock writes it anew", err)
	default:
		if err := json.Unmarshal(text, &c.state); err != nil || c.state.Believed.IsZero() {
			return fmt.Errorf("reading what the clock showed: %s holds something else; when the machine's clock is right, portvakt-gateway audit trust-clock writes it anew", c.path)
		}
	}
	c.read, c.looked = true, time.Now()
	c.anchor, c.anchored = c.state.Believed, c.looked
	return nil
}

// keep says for how long the shortest-lived data is kept: a leap that is believed
// destroys nothing in less than half of it.
func (c *clock) keep(r Retention) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.most = maxLeap
	for _, kept := range append(slices.Collect(maps.Values(r.Fields)), r.Personal, r.Records) {
		if kept > 0 {
			c.most = min(c.most, kept/2)
		}
	}
}

// before returns what is too old at now when it is kept for so long; never
// anything of the day that this process lives in by the time that passed for it.
func (c *clock) before(now time.Time, kept time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	limit := now.Add(-kept)
	if lived := c.anchor.Add(time.Since(c.anchored)); lived.Before(limit) {
		return lived
	}
	return limit
}

// save keeps a state, in memory when it is on the disk. mu is held.
func (c *clock) save(next clockState) error {
	next.Believed = next.Believed.UTC().Round(0)
	text, err := json.Marshal(next)
	if err == nil {
		err = renameio.WriteFile(c.path, append(text, '\n'), 0o600, renameio.WithTempDir(filepath.Dir(c.path)))
	}
	if err == nil {
		err = syncDir(filepath.Dir(c.path))
	}
	if err != nil {
		return fmt.Errorf("storing what the clock showed: %w", err)
	}
	c.state = next
	return nil
}

// trust believes the wall clock, whatever the file holds.
func (c *clock) trust(wall time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leap == 0 && !c.broken {
		return ErrClockBelieved
	}
	if err := c.save(clockState{Believed: wall}); err != nil {
		return err
	}
	c.looked, c.leap, c.read, c.broken = time.Now(), 0, true, false
	c.anchor, c.anchored = wall, c.looked
	select {
	case c.trusted <- struct{}{}:
	default:
	}
	return nil
}

// ClockLeap returns how far the machine's clock is ahead (behind, if negative)
// of what there is evidence for, as [Log.Retain] last found it; 0 while it is
// believed.
func (l *Log) ClockLeap() time.Duration {
	l.clock.mu.Lock()
	defer l.clock.mu.Unlock()
	return l.clock.leap
}

// ClockBelieved returns nil, or that the machine's clock is not believed and
// what that means.
func (l *Log) ClockBelieved() error {
	leap := l.ClockLeap()
	if leap == 0 {
		return nil
	}
	where := "ahead of"
	if leap < 0 {
		where = "behind"
	}
	far := fmt.Sprintf("%d hours", int(leap.Abs().Hours()))
	if leap.Abs() >= 48*time.Hour {
		far = fmt.Sprintf("%d days", int(leap.Abs().Hours()/24))
	}
	return fmt.Errorf("the machine's clock is %s %s what the log and the time since speak for; nothing is destroyed for its age by it. Set the clock right; if it is right: portvakt-gateway audit trust-clock", far, where)
}

// ClockInDoubt says whether there is something for [Log.TrustClock] to do.
func (l *Log) ClockInDoubt() bool {
	l.clock.mu.Lock()
	defer l.clock.mu.Unlock()
	return l.clock.leap != 0 || l.clock.broken
}

// Retaining returns nil, or why [Log.Retain] did not destroy what is old when it
// looked last, or does not believe the clock.
func (l *Log) Retaining() error {
	l.clock.mu.Lock()
	failed := l.clock.failed
	l.clock.mu.Unlock()
	if failed != nil {
		failed = fmt.Errorf("nothing, or not all that is old, is destroyed: %w", failed)
	}
	return cmp.Or(l.ClockBelieved(), failed)
}

// lookedAt keeps what a look at what is old failed for.
func (c *clock) lookedAt(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed = err
}

// TrustClock says that the machine's clock is right although it leapt, or what
// is known of it cannot be read: recorded first, because what is old by it is
// destroyed then.
func (l *Log) TrustClock(actor string, detail map[string]string) error {
	leap := l.ClockLeap()
	if !l.ClockInDoubt() {
		return ErrClockBelieved
	}
	all := map[string]string{"leap_seconds": strconv.FormatInt(int64(leap/time.Second), 10)}
	maps.Copy(all, detail)
	if err := l.Append(&Record{Kind: KindAdmin, Actor: actor, Outcome: "trusted_clock", Detail: all}); err != nil {
		return err
	}
	return l.clock.trust(l.now())
}

// believed is the time by which what is old is destroyed.
func (l *Log) believed() (time.Time, error) {
	was := l.ClockLeap()
	now, err := l.clock.now(l.now(), l.newest)
	if err != nil {
		return time.Time{}, err
	}
	switch leap := l.ClockLeap(); {
	case leap != 0 && (was == 0 || (leap-was).Abs() > maxLeap):
		l.log.Error("the machine's clock leapt", "err", l.ClockBelieved())
	case leap == 0 && was != 0:
		l.log.Info("the machine's clock is believed again", "clock", now)
	}
	return now, nil
}
