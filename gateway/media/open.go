package media

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/portvakt/portvakt/gateway/dial"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/policy"
)

// How a flow ended, for its record.
const (
	outcomeDone        = "done"
	outcomeCut         = "cut"
	outcomeUnreachable = "upstream_unavailable"
	outcomeForbidden   = "upstream_forbidden"
)

// worker decides flows until ctx is done. Look-ups of names go on beside it,
// counted in wg.
func (r *Relay) worker(ctx context.Context, wg *sync.WaitGroup) {
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-r.work:
			app, ok := r.decide(ctx, f)
			if !ok {
				r.refuse(f)
				continue
			}
			upstream := app.UpstreamFor(f.key.app.Port())
			if numeric(upstream) {
				r.connect(ctx, f, app, upstream)
				continue
			}
			// A name server that does not answer keeps the flows of its own
			// apps waiting, and no worker.
			if !r.beginResolving(app.Name) {
				r.drop(opening)
				r.giveUp(f, outcomeUnreachable)
				continue
			}
			wg.Go(func() {
				defer r.endResolving(app.Name)
				r.connect(ctx, f, app, upstream)
			})
		}
	}
}

// decide registers, decides and records a flow.
func (r *Relay) decide(ctx context.Context, f *flow) (*policy.App, bool) {
	port := f.key.app.Port()
	app := r.cfg.AppByAddr(f.key.app.Addr())
	if app == nil || app.Protocol != policy.ProtocolUDP || !slices.Contains(app.Ports, port) {
		return app, false
	}
	s, err := r.cfg.Sessions.Begin(session.Begin{Peer: f.peer(), App: app, Action: policy.ActionFlow, Port: port})
	if err != nil {
		r.log.Debug("refusing a flow", "app", app.Name, "remote", f.peer(), "err", err)
		return app, false
	}
	// A decision that has begun is not spoilt by the gateway's own end.
	d, err := s.Authorize(context.WithoutCancel(ctx), nil)
	if err != nil || !d.Allow {
		s.End(session.Result{})
		return app, false
	}
	f.session = s
	f.mark.Store(app.DSCP == policy.DSCPAuto)
	return app, true
}

// numeric says whether a host:port needs no look-up.
func numeric(hostPort string) bool {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		return false
	}
	_, err = netip.ParseAddr(host)
	return err == nil
}

func (r *Relay) beginResolving(app string) bool {
	r.resolveMu.Lock()
	defer r.resolveMu.Unlock()
	if r.resolving[app] >= r.cfg.Limits.Resolving {
		return false
	}
	r.resolving[app]++
	return true
}

func (r *Relay) endResolving(app string) {
	r.resolveMu.Lock()
	defer r.resolveMu.Unlock()
	if r.resolving[app]--; r.resolving[app] == 0 {
		delete(r.resolving, app)
	}
}

// connect finds where an allowed flow leads, gives it a socket and lets its
// datagrams go.
func (r *Relay) connect(ctx context.Context, f *flow, app *policy.App, upstream string) {
	// The flow's own context ends the look-up when the flow is cut meanwhile.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(f.session.Context(), cancel)()
	to, err := dial.Datagram(ctx, r.cfg.Timeouts.Dial, app.Allow, r.cfg.Forbidden, upstream)
	if err == nil {
		f.to, f.target = to, newTarget(to)
		f.socket, err = r.attach(f)
	}
	switch {
	case err == nil:
	case ctx.Err() != nil: // cut, or the gateway ends: no fault of the app's
		r.giveUp(f, outcomeDone)
		return
	default:
		outcome := outcomeUnreachable
		if errors.Is(err, dial.ErrForbidden) {
			outcome = outcomeForbidden
		}
		if errors.Is(err, errNoPort) {
			r.drop(noPort)
		}
		r.log.Warn(dial.Failed(err), "app", app.Name, "flow", f.session.ID(), "err", err)
		r.giveUp(f, outcome)
		return
	}
	f.session.OnCut(func() { r.close(f, outcomeCut) })
	r.release(f)
}

// release opens a flow and sends what waited for it. Who comes with the next
// datagram meanwhile waits for the socket, so that order is kept.
func (r *Relay) release(f *flow) {
	if f.session.Check() != nil {
		r.close(f, outcomeCut)
		return
	}
	s, dev := f.socket, f.dev
	s.mu.Lock()
	defer s.mu.Unlock()
	dev.mu.Lock()
	waiting := f.queue
	f.queue = nil
	cut := !f.is(flowOpening)
	if !cut {
		f.state.Store(uint32(flowOpen))
		dev.opening--
	}
	dev.mu.Unlock()
	if cut {
		return
	}
	b := batches.Get().(*batch)
	for _, payload := range waiting {
		b.add(f, payload)
	}
	r.send(b, s)
	batches.Put(b)
}

// giveUp ends an allowed flow that never got a socket.
func (r *Relay) giveUp(f *flow, outcome string) {
	if _, was := f.session.Cut(); was {
		outcome = outcomeCut
	}
	f.session.End(session.Result{Outcome: outcome})
	r.refuse(f)
}

// refuse keeps a flow as refused for a moment.
func (r *Relay) refuse(f *flow) {
	f.dev.mu.Lock()
	defer f.dev.mu.Unlock()
	if !f.is(flowOpening) {
		return
	}
	f.queue = nil
	f.dev.opening--
	f.last.Store(r.clock.Load())
	f.state.Store(uint32(flowRefused))
}

// close ends a flow that has a socket: nothing is sent for it any more once it
// returns. Of several calls the first one counts.
func (r *Relay) close(f *flow, outcome string) {
	s := f.socket
	f.dev.mu.Lock()
	if f.is(flowClosed) {
		f.dev.mu.Unlock()
		return
	}
	if f.is(flowOpening) {
		f.dev.opening--
	}
	f.queue = nil
	r.forget(f)
	f.dev.mu.Unlock()
	s.mu.Lock() // waits for a datagram on its way
	delete(s.flows, f.to)
	empty := len(s.flows) == 0
	s.mu.Unlock()
	if empty {
		r.retire(s)
	}
	if _, was := f.session.Cut(); was {
		outcome = outcomeCut
	}
	f.session.End(session.Result{Outcome: outcome, BytesIn: f.in.Load(), BytesOut: f.out.Load()})
}

// sweep ends what is idle, forgets what was refused, and has open flows marked as
// policy says by now.
func (r *Relay) sweep(now time.Duration) {
	r.clock.Store(int64(now))
	r.mu.RLock()
	devices := make([]*device, 0, len(r.devices))
	for _, dev := range r.devices {
		devices = append(devices, dev)
	}
	r.mu.RUnlock()
	var idle []*flow
	var gone bool
	for _, dev := range devices {
		idle = idle[:0]
		var at netip.Addr
		var told bool // calls to at are
		dev.mu.Lock()
		for _, f := range dev.flows {
			if a := f.key.app.Addr(); a != at {
				app := r.cfg.AppByAddr(a)
				at, told = a, app != nil && app.DSCP == policy.DSCPAuto
			}
			if f.is(flowOpen) && f.mark.Load() != told {
				f.mark.Store(told)
			}
			quiet := now - time.Duration(f.last.Load())
			switch {
			case f.is(flowRefused) && quiet >= refusedFor:
				r.forget(f)
			case f.is(flowOpen) && quiet >= r.idle(f):
				idle = append(idle, f)
			}
		}
		dev.mu.Unlock()
		for _, f := range idle {
			r.close(f, outcomeDone)
		}
		dev.mu.Lock()
		gone = gone || len(dev.flows) == 0
		dev.mu.Unlock()
	}
	r.ports.sweep(now)
	if gone {
		r.forgetDevices()
	}
}

func (r *Relay) idle(f *flow) time.Duration {
	if f.key.app.Port() == dnsPort {
		return r.cfg.Timeouts.IdleDNS
	}
	return r.cfg.Timeouts.Idle
}

// forgetDevices drops devices without flows.
func (r *Relay) forgetDevices() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for addr, dev := range r.devices {
		dev.mu.Lock()
		if len(dev.flows) == 0 {
			delete(r.devices, addr)
		}
		dev.mu.Unlock()
	}
}

// closeAll ends every flow. No worker runs any more.
func (r *Relay) closeAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for addr, dev := range r.devices {
		var all []*flow
		dev.mu.Lock()
		for _, f := range dev.flows {
			if f.is(flowOpen) {
				all = append(all, f)
			} else {
				r.forget(f)
			}
		}
		dev.mu.Unlock()
		for _, f := range all {
			r.close(f, outcomeDone)
		}
		delete(r.devices, addr)
	}
}
