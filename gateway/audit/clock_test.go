package audit_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/people"
)

const (
	day   = 24 * time.Hour
	years = 10 * 365 * day
)

// machine is a gateway's log on a machine whose clock can leap.
type machine struct {
	*audit.Log
	t     *testing.T
	dir   string
	kept  time.Duration
	field time.Duration // of the address; 0: as kept
	ahead atomic.Int64
	stop  func()
}

func newMachine(t *testing.T, dir string, kept time.Duration) *machine {
	m := &machine{t: t, dir: dir, kept: kept}
	m.start()
	return m
}

func (m *machine) start() {
	m.t.Helper()
	m.Log = sealing(m.t, m.dir, func() time.Time { return time.Now().Add(time.Duration(m.ahead.Load())) })
	ctx, cancel := context.WithCancel(m.t.Context())
	done := make(chan error, 1)
	r := audit.Retention{Personal: m.kept}
	if m.field > 0 {
		r.Fields = map[people.Field]time.Duration{people.Address: m.field}
	}
	go func() { done <- m.Retain(ctx, r) }()
	m.stop = func() {
		m.t.Helper()
		cancel()
		if err := errors.Join(<-done, m.Close()); err != nil {
			m.t.Error(err)
		}
	}
	synctest.Wait()
}

func (m *machine) leap(d time.Duration) { m.ahead.Store(int64(d)) }

func (m *machine) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (m *machine) write() {
	m.t.Helper()
	if err := m.Append(&audit.Record{Kind: audit.KindDecision, Subject: "iss#anna"}); err != nil {
		m.t.Fatal(err)
	}
}

// check tells of how many records the subject must still be readable, and how
// far the clock must be from what is believed.
func (m *machine) check(when string, readable int, leap time.Duration) {
	m.t.Helper()
	got := 0
	err := audit.Scan(m.Path(), func(line []byte, r *audit.Record) bool {
		if _, err := m.Reveal(line, r); err != nil {
			m.t.Error(err)
		}
		if r.Subject != "" {
			got++
		}
		return true
	})
	if err != nil || got != readable {
		m.t.Errorf("%s: %d records can be read, want %d; %v", when, got, readable, err)
	}
	if d := m.ClockLeap() - leap; d.Abs() > 2*time.Hour || (leap == 0) != (m.ClockBelieved() == nil) {
		m.t.Errorf("%s: the clock is taken to be %s ahead, want %s; %v", when, m.ClockLeap(), leap, m.ClockBelieved())
	}
}

// A clock that leaps years ahead destroys nothing, over restarts too, until
// somebody says that it is right. What is old by the time that really passed
// goes all the same.
func TestClockThatLeapsDestroysNothing(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, dir, 2*day)
		if err := m.TrustClock("os:0:root", nil); !errors.Is(err, audit.ErrClockBelieved) {
			t.Errorf("trusting a clock that did not leap: %v", err)
		}
		for range 2 {
			m.write()
			m.sleep(time.Hour)
		}
		m.check("before", 2, 0)
		m.leap(years)
		m.sleep(2 * time.Hour)
		m.check("after the leap", 2, years)
		m.stop()
		m.start()
		m.write() // a day of the future has a key now
		m.sleep(2 * time.Hour)
		m.check("after a restart", 3, years)
		m.sleep(3 * day)
		m.check("when its time has come", 0, years)
		if err := m.TrustClock("os:0:root", map[string]string{"why": "it was set right"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		m.check("when it is said to be right", 0, 0)
		m.leap(0)
		m.write()
		m.sleep(2 * time.Hour)
		m.check("when it leaps back", 1, -years)
		m.stop()
		said := 0
		if err := audit.Scan(m.Path(), func(_ []byte, r *audit.Record) bool {
			if r.Kind == audit.KindAdmin && r.Outcome == "trusted_clock" && r.Actor == "os:0:root" && r.Detail["why"] == "it was set right" && r.Detail["leap_seconds"] != "" {
				said++
			}
			return true
		}); err != nil || said != 1 {
			t.Errorf("%d records of it, %v", said, err)
		}
	})
}

// What is kept for a day is not destroyed by a clock that is two days ahead, nor
// by one that goes ahead by half a day again and again; nor is the rest then.
func TestSmallLeapsDestroyNothingThatIsKeptShortly(t *testing.T) {
	for name, leaps := range map[string][]time.Duration{
		"at once":   {2 * day},
		"by and by": {11 * time.Hour, 22 * time.Hour, 33 * time.Hour, 44 * time.Hour, 55 * time.Hour},
	} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			m := &machine{t: t, dir: dir, kept: 90 * day, field: day}
			m.start()
			addresses := func(when string, want int) {
				t.Helper()
				got := 0
				err := audit.Scan(m.Path(), func(line []byte, r *audit.Record) bool {
					if _, err := m.Reveal(line, r); err != nil || r.Unreadable != nil {
						t.Error(r, err)
					}
					if r.Remote != "" {
						got++
					}
					return true
				})
				if err != nil || got != want {
					t.Errorf("%s, %s: %d addresses can be read, want %d; %v", name, when, got, want, err)
				}
			}
			put := func() {
				t.Helper()
				if err := m.Append(&audit.Record{Kind: audit.KindDecision, Subject: "iss#anna", Remote: "192.0.2.1"}); err != nil {
					t.Fatal(err)
				}
			}
			put()
			m.sleep(2 * time.Hour)
			for _, d := range leaps {
				m.leap(d)
				m.sleep(61 * time.Minute)
				addresses("ahead by "+d.String(), 1)
			}
			if name == "at once" && (m.ClockLeap() != 2*day || !strings.Contains(m.ClockBelieved().Error(), "2 days ahead")) {
				t.Errorf("it is said to be %s ahead, %v", m.ClockLeap(), m.ClockBelieved())
			}
			m.leap(0)
			put()
			m.sleep(2 * time.Hour)
			addresses("when it was set right", 2)
			m.sleep(3 * day)
			if name == "at once" {
				addresses("when their time has come", 0)
			}
			m.sleep(9 * day)
			addresses("later", 0)
			m.check("of the rest", 2, m.ClockLeap())
			m.stop()
		})
	}
}

// Who was seen while the clock was ahead is forgotten when their time has come,
// over a restart too.
func TestSeenWhileTheClockWasAhead(t *testing.T) {
	for _, restart := range []bool{false, true} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			m := newMachine(t, dir, 20*day)
			m.leap(years)
			m.write()
			m.sleep(2 * time.Hour)
			m.leap(0)
			m.sleep(2 * time.Hour)
			if restart {
				m.stop()
				m.start()
			}
			m.sleep(19 * day)
			m.check("before their time", 1, 0)
			m.sleep(3 * day)
			m.check("after it", 0, 0)
			if id, err := m.PersonOf("iss#anna", ""); !errors.Is(err, audit.ErrNobody) {
				t.Errorf("still known as %s, %v", id, err)
			}
			m.stop()
		})
	}
}

// A leap is over when the clock is put right, and believed when the gateway ran
// with it for a week, not when it was off for one.
func TestLeapsEnd(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, dir, 30*day)
		m.write()
		m.leap(years)
		m.sleep(2 * time.Hour)
		m.check("after the leap", 1, years)
		m.leap(0)
		m.sleep(2 * time.Hour)
		m.check("put right", 1, 0)
		m.leap(years)
		m.sleep(6 * day)
		m.check("six days later", 1, years)
		m.leap(2 * years)
		m.sleep(6 * day)
		m.check("six days after another leap", 1, 2*years)
		m.stop()
		m.sleep(5 * day)
		m.start()
		m.check("after days off", 1, 2*years+5*day)
		m.sleep(2 * day)
		m.check("after a week", 0, 0)
		m.stop()
	})
}

// A file that cannot be read is no evidence: nothing is destroyed, which is said,
// until it is written anew.
func TestDamagedClockFile(t *testing.T) {
	for _, text := range []string{"", "{", "{}", `{"believed":"yesterday"}`} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			m := newMachine(t, dir, 2*day)
			m.write()
			m.stop()
			if err := os.WriteFile(filepath.Join(dir, "audit", "clock.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			m.start()
			m.sleep(30 * day)
			m.check("after a month", 1, 0)
			if err := m.Retaining(); err == nil || !strings.Contains(err.Error(), "clock.json") || !strings.Contains(err.Error(), "trust-clock") || !m.ClockInDoubt() {
				t.Errorf("%q: said is %v", text, err)
			}
			if err := m.TrustClock("os:0:root", nil); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			for range 2 {
				m.check("written anew", 0, 0)
				if err := m.Retaining(); err != nil || m.ClockInDoubt() {
					t.Errorf("%q: written anew: %v", text, err)
				}
				m.stop()
				m.start()
			}
			m.stop()
		})
	}
}

// A gateway that was off for days goes on at once; one that was off for months
// is asked about, because nothing tells that from a leap.
func TestTimeOff(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, dir, 20*day)
		file := filepath.Join(dir, "audit", "clock.json")
		m.write()
		m.stop()
		m.sleep(6 * day)
		m.start()
		m.check("after six days", 1, 0)
		m.stop()
		m.sleep(90 * day)
		m.start()
		m.check("after three months", 1, 90*day)
		m.stop()
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		m.start()
		m.check("by the newest record alone", 1, 96*day)
		m.stop()
		if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		m.start()
		m.sleep(day)
		m.check("when it is not known", 1, 0)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		m.sleep(time.Hour)
		if err := m.TrustClock("os:0:root", nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		m.check("when it is said to be right", 0, 0)
		m.stop()
	})
}
