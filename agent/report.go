package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/portvakt/portvakt/internal/wire"
)

// watchPosture collects the signals for as long as the agent runs, so that a
// change is known at once.
func (a *agent) watchPosture(ctx context.Context) error {
	return a.collector.Watch(ctx, a.cfg.changeEvery, func(signals []wire.Signal) {
		a.mu.Lock()
		a.signals = signals
		a.mu.Unlock()
		poke(a.moved)
	})
}

// report sends a posture report at once, at every change, every
// [wire.ReportInterval], and to a gateway that was restarted.
func (a *agent) report(ctx context.Context, l *link) error {
	for again := false; ctx.Err() == nil; {
		// What is collected now says everything a change before now could.
		select {
		case <-a.moved:
		default:
		}
		wait := wire.ReportInterval
		if err := a.send(ctx, l); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if gone(err) {
				return err
			}
			a.cfg.Log.Warn("sending a posture report", "err", err)
			wait = 2 * time.Second
		} else if again {
			l.tun.redial() // before it, they would have been refused
			again = false
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-a.moved:
		case <-l.again:
			again = true
		}
		timer.Stop()
	}
	return nil
}

// reportFirst sends a report before anything else; a gateway that does not
// answer must not hold the link up.
func (a *agent) reportFirst(ctx context.Context, l *link) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := a.send(ctx, l); err != nil {
		a.cfg.Log.Warn("sending the first posture report", "err", err)
	}
}

// send makes and sends one report. Each nonce serves once; an answer that was
// lost took it along, and then the refusal brings the next one.
func (a *agent) send(ctx context.Context, l *link) error {
	signals := a.collector.Collect(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for again := false; ; again = true {
		signed, err := a.sign(wire.Report{
			DeviceID: l.connect.DeviceID, Nonce: l.nonce, BootID: a.cfg.BootID, Time: a.cfg.Now().UTC(), Signals: signals,
		})
		if err != nil {
			return err
		}
		res, err := l.client.Posture(ctx, signed)
		if err == nil {
			l.nonce = res.Nonce
			a.mu.Lock()
			a.signals, l.sentAt = signals, a.cfg.Now()
			a.mu.Unlock()
			return nil
		}
		var e *wire.Error
		if !errors.As(err, &e) || e.PostureNonce == "" {
			return err
		}
		l.nonce = e.PostureNonce
		if again {
			return err
		}
	}
}

func (a *agent) sign(r wire.Report) (wire.SignedReport, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return wire.SignedReport{}, fmt.Errorf("writing a posture report: %w", err)
	}
	sum := sha256.Sum256(data)
	sig, err := ecdsa.SignASN1(rand.Reader, a.key, sum[:])
	if err != nil {
		return wire.SignedReport{}, fmt.Errorf("signing a posture report: %w", err)
	}
	return wire.SignedReport{Report: data, Signature: sig}, nil
}

// watchClock notices that the laptop slept: the wall clock went on and the
// monotonic one did not (Linux), or this goroutine did not run for long.
func (a *agent) watchClock(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := time.Now()
		if slept(now.Sub(last), now.Round(0).Sub(last.Round(0))) {
			a.cfg.Log.Info("the laptop slept or its clock was set; connecting anew")
			poke(a.resumed)
		}
		last = now
	}
}

// slept judges one second's tick by what the monotonic and the wall clock say
// of it.
func slept(monotonic, wall time.Duration) bool {
	return monotonic > 10*time.Second || (wall-monotonic).Abs() > 5*time.Second
}
