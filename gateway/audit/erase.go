package audit

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/portvakt/portvakt/gateway/audit/people"
)

// ErrNobody is returned for somebody of whom the log holds nothing personal, or
// nothing any more.
var ErrNobody = errors.New("the log holds no personal data of them")

// PersonOf returns what the log calls a subject (ISS#SUB), or a device whose
// user was not known.
func (l *Log) PersonOf(subject, device string) (id string, err error) {
	name := subject
	if name == "" {
		name = deviceName(device)
	}
	if l.people != nil {
		if id, ok := l.people.ID(name); ok {
			return id, nil
		}
	}
	return "", ErrNobody
}

// Holds says whether the log can open personal data of a person of that ID.
func (l *Log) Holds(id string) bool { return l.people != nil && l.people.Has(id) }

// Erase destroys what opens the personal data of a person: recorded first,
// because it cannot be undone.
func (l *Log) Erase(id, actor string, detail map[string]string) error {
	if !l.Holds(id) {
		return ErrNobody
	}
	if err := l.Append(&Record{Kind: KindErase, Person: id, Actor: actor, Detail: detail}); err != nil {
		return err
	}
	if err := l.people.Erase(id); err != nil {
		return fmt.Errorf("erasing %s: %w", id, err)
	}
	return nil
}

const (
	retainEvery = time.Hour
	retainAgain = time.Minute // after a failure
)

// Retention says for how long a log is kept; zero is for ever.
type Retention struct {
	Personal time.Duration // what opens personal data
	// Fields of personal data that are kept for less.
	Fields  map[people.Field]time.Duration
	Records time.Duration
	Keep    Keep // for Records
}

// Retain destroys what opens personal data, or a field of it, of days that ended
// longer ago than it is kept, and removes older records, now and every hour, until ctx ends.
// What it does is recorded first. It takes the machine's clock only as far as
// there is evidence for it; see [Log.ClockBelieved].
func (l *Log) Retain(ctx context.Context, r Retention) error {
	l.clock.keep(r)
	for {
		wait := retainEvery
		now, err := l.believed()
		if err == nil {
			err = l.retain(ctx, r, now)
		}
		if ctx.Err() == nil {
			l.clock.lookedAt(err)
		}
		if err != nil && ctx.Err() == nil {
			l.log.Error("what is old in the audit log could not be destroyed; trying again", "err", err)
			wait = retainAgain
		}
		if ctx.Err() != nil {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-l.clock.trusted:
			timer.Stop()
		}
	}
}

// retain destroys what is too old at now.
func (l *Log) retain(ctx context.Context, r Retention, now time.Time) error {
	var errs []error
	if r.Personal > 0 {
		errs = append(errs, l.notAfter(now), l.expire(l.clock.before(now, r.Personal)))
	}
	for f, kept := range r.Fields {
		errs = append(errs, l.expireField(f, l.clock.before(now, kept)))
	}
	if r.Records > 0 {
		errs = append(errs, l.forget(ctx, l.clock.before(now, r.Records), r.Keep))
	}
	return errors.Join(errs...)
}

func (l *Log) expireField(f people.Field, before time.Time) error {
	if l.people == nil {
		return nil
	}
	days := l.people.DueOf(f, before)
	if len(days) == 0 {
		return nil
	}
	err := l.Append(&Record{Kind: KindErase, Actor: "retention", Detail: map[string]string{
		"before": before.UTC().Format(time.DateOnly), "days": strconv.Itoa(len(days)), "field": f.String(),
	}})
	if err != nil {
		return err
	}
	return l.people.ExpireOf(f, days)
}

func (l *Log) notAfter(now time.Time) error {
	if l.people == nil {
		return nil
	}
	return l.people.NotAfter(now)
}

func (l *Log) expire(before time.Time) error {
	if l.people == nil {
		return nil
	}
	days, persons := l.people.Due(before)
	if len(days) == 0 && len(persons) == 0 {
		return nil
	}
	err := l.Append(&Record{Kind: KindErase, Actor: "retention", Detail: map[string]string{
		"before": before.UTC().Format(time.DateOnly), "days": strconv.Itoa(len(days)), "people": strconv.Itoa(len(persons)),
	}})
	if err != nil {
		return err
	}
	return l.people.Expire(before, days, persons)
}

func deviceName(id string) string { return "device:" + id }
