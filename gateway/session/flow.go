package session

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/policy"
)

// Begin says what a Flow is about to be.
type Begin struct {
	// Peer is the inner source: the device's own address, which the tunnel and
	// the segment filter have proven.
	Peer   netip.AddrPort
	App    *policy.App   // which nobody changes
	Action policy.Action // ActionRequest or ActionFlow
	Port   uint16        // on the app's virtual address
	// RequestHash names the HTTP request in the records; empty for flows.
	RequestHash string
}

// Result is how a Flow ended.
type Result struct {
	Outcome           string // "done", or what went wrong, for the record; upstream_... is the app's fault, device_... the device's
	Status            int    // HTTP status given to the client, 0 for flows
	BytesIn, BytesOut int64  // from the device, to the device
}

// Facts are who and what a Flow belongs to, as of its Decision.
type Facts struct {
	Subject *policy.Subject
	// SubjectKey is its Key, empty when nobody is logged in.
	SubjectKey string
	Session    *policy.Session
	Device     policy.Device
	// Outer is the device's outer address.
	Outer string
}

func factsOf(f *policy.Facts) Facts {
	return Facts{Subject: f.Subject(), SubjectKey: f.SubjectKey(), Session: f.Session(), Device: f.Device(), Outer: f.Address()}
}

// basis is what a Decision was made on.
type basis struct {
	facts    *policy.Facts
	question policy.Question
	revision *policy.Revision
	unasked  bool // a lockdown answered; no opa could reproduce that
}

// keep puts the Input into a record, behind room if there is enough.
func (b *basis) keep(r *audit.Record, room []byte) {
	if b.unasked {
		return
	}
	in, err := b.facts.AppendInput(room, b.question)
	if err != nil {
		panic("session: an input does not marshal: " + err.Error()) // no type in it can fail
	}
	r.Input, r.InputCompact = in, true
}

// note says in a record who and from where.
func (f Facts) note(r *audit.Record) {
	r.Remote, r.Subject = f.Outer, f.SubjectKey
	if f.Session != nil {
		r.Session = f.Session.ID
	}
}

// Refused is the error of a Flow that was refused before it was decided.
type Refused struct{ Decision policy.Decision }

// Error returns the Reason.
func (r *Refused) Error() string { return string(r.Decision.Reason) }

// ErrCut is returned by [Flow.Check] once a Flow was cut.
var ErrCut = errors.New("the flow was cut")

// A Flow is one open HTTP exchange, WebSocket, TCP connection or UDP exchange.
// It is registered when it begins, so that nothing can change unseen between
// its Decision and its first byte.
type Flow struct {
	// Side by side, because Check, which every datagram calls, needs no more.
	m    *Manager
	over atomic.Bool // it was cut or has ended: no byte passes
	// leaseEnd is the Elapsed time until which bytes may pass.
	leaseEnd atomic.Int64

	d      *device
	id     string
	begin  Begin
	opened time.Time

	// confirming is held while an open Flow is decided again, so that it begins
	// to drain once, and never while anything is written. Cuts do not take it.
	confirming sync.Mutex

	// mu guards the fields below. It is never held while deciding, recording
	// or running onCut.
	mu       sync.Mutex
	decided  bool // a Decision allowed it; changes decide it again from here on
	request  *policy.Request
	facts    Facts
	last     policy.Decision
	held     *basis // what it was last allowed on
	drain    drain
	cut      *policy.Decision
	onCut    func()
	ended    bool
	longLive bool // TCP, UDP and WebSocket: its end is recorded
	// ctx is made when somebody asks for it: most requests do not.
	ctx    context.Context
	cancel context.CancelFunc
}

// Begin registers a Flow. The error is a *[Refused] when the device is not
// connected or has too many Flows open.
func (m *Manager) Begin(b Begin) (*Flow, error) {
	m.mu.RLock()
	d := m.inner[b.Peer.Addr().Unmap()]
	m.mu.RUnlock()
	if d == nil {
		return nil, m.refuseGone(b)
	}
	f := &Flow{m: m, d: d, id: newID("f-"), begin: b, opened: m.cfg.Now(), longLive: b.Action == policy.ActionFlow}
	refusal := m.register(f)
	if refusal == nil {
		return f, nil
	}
	f.finish()
	m.refused.Add(1)
	dec := *refusal
	dec.ID, dec.App, dec.Time = newID("d-"), b.App.Name, f.opened
	d.refusals.Note(*f.record(nil, dec, f.openKind(nil)))
	return nil, &Refused{dec}
}

// register puts f among its device's open Flows, or says why not.
func (m *Manager) register(f *Flow) (refusal *policy.Decision) {
	d := f.d
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.gone != nil:
		return d.gone
	case len(d.flows) >= m.cfg.MaxFlows:
		m.crowded.Add(1)
		dec := policy.NewDecision(policy.ReasonTooManyFlows, &policy.Fact{
			Name: "open connections", Value: fmt.Sprint(len(d.flows)), Wanted: fmt.Sprintf("fewer than %d", m.cfg.MaxFlows),
		})
		return &dec
	}
	if d.flows == nil {
		d.flows = map[*Flow]struct{}{}
	}
	d.flows[f] = struct{}{}
	m.flows.Add(1)
	return nil
}

// ID names the Flow in records.
func (f *Flow) ID() string { return f.id }

// App is where the Flow leads. Nobody changes it.
func (f *Flow) App() *policy.App { return f.begin.App }

// Context is cancelled when the Flow is cut or has ended.
func (f *Flow) Context() context.Context {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctx == nil {
		f.ctx, f.cancel = context.WithCancel(context.Background())
		if f.over.Load() {
			f.cancel()
		}
	}
	return f.ctx
}

// finish lets no byte pass any more and ends the context. It is called without
// mu.
func (f *Flow) finish() {
	f.over.Store(true)
	f.mu.Lock()
	cancel := f.cancel
	f.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// maxRounds bounds how often a Flow is decided again because facts moved while
// it was being decided.
const maxRounds = 8

// Authorize decides the Flow, records the Decision, and decides again if a fact
// moved meanwhile. Only when it returns an allowing Decision and no error may
// the caller act. The error means that the record of an allowing Decision could
// not be written; the Decision returned with it denies.
func (f *Flow) Authorize(ctx context.Context, req *policy.Request) (policy.Decision, error) {
	for range maxRounds {
		epoch := f.d.epoch.Load()
		on, dec := f.decide(ctx, f.m.cfg.Now(), req)
		if !dec.Allow {
			f.m.refused.Add(1)
			f.d.refusals.Note(*f.record(on, dec, f.openKind(req)))
			return dec, nil
		}
		if err := f.keepAllowed(on, dec, req); err != nil {
			f.m.log.Error("recording a decision; refusing it", "flow", f.id, "app", f.begin.App.Name, "err", err)
			f.m.refused.Add(1)
			deny := policy.NewDecision(policy.ReasonAuditUnavailable, nil)
			deny.ID, deny.App, deny.Time = dec.ID, dec.App, dec.Time
			return deny, fmt.Errorf("recording the decision: %w", err)
		}
		f.mark(on, req, dec)
		if f.d.epoch.Load() == epoch {
			if cut, ok := f.Cut(); ok {
				return cut, nil
			}
			return dec, nil
		}
		if cut, ok := f.unmark(); ok {
			return cut, nil
		}
	}
	// Facts that move eight times within one Decision are no ground to allow on.
	dec := policy.NewDecision(policy.ReasonPolicyError, &policy.Fact{Name: "facts", Value: "changing", Wanted: "settled"})
	dec.ID, dec.App, dec.Time = newID("d-"), f.begin.App.Name, f.m.cfg.Now()
	f.m.refused.Add(1)
	f.d.refusals.Note(*f.record(nil, dec, f.openKind(req)))
	return dec, nil
}

// mark lets changes decide the Flow again from here on, unless one ended it.
func (f *Flow) mark(on *basis, req *policy.Request, dec policy.Decision) {
	f.mu.Lock()
	f.decided, f.request, f.last = f.cut == nil, req, dec
	f.facts, f.held = factsOf(on.facts), on
	f.longLive = f.longLive || (req != nil && req.Upgrade != "")
	f.mu.Unlock()
	f.renew()
}

// unmark is for a Flow that is to be decided anew: what ends it then is recorded
// once, there. It returns the cut that came before, which is recorded already.
func (f *Flow) unmark() (cut policy.Decision, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.decided && f.cut != nil {
		return *f.cut, true
	}
	f.decided = false
	return policy.Decision{}, false
}

// kept is a record and the room for its Input. The log is done with both when
// it returns.
type kept struct {
	record audit.Record
	input  []byte
}

var keeps = sync.Pool{New: func() any { return &kept{input: make([]byte, 0, 2<<10)} }}

// keepAllowed records a Decision that is about to let something happen.
func (f *Flow) keepAllowed(on *basis, dec policy.Decision, req *policy.Request) error {
	k := keeps.Get().(*kept)
	f.fill(&k.record, on, dec, f.openKind(req), k.input[:0])
	err := f.keep(&k.record)
	if n := cap(k.record.Input); n > cap(k.input) && n <= 64<<10 {
		k.input = k.record.Input[:0]
	}
	k.record = audit.Record{}
	keeps.Put(k)
	return err
}

// keep records what is about to be allowed, as durably as the app wants it.
func (f *Flow) keep(r *audit.Record) error {
	if f.begin.App.Durability == policy.DurabilityStrict {
		return f.m.cfg.Audit.AppendDurable(r)
	}
	return f.m.cfg.Audit.Append(r)
}

// decide asks policy. There is no basis when the connection is over, which no
// policy decides and no opa could reproduce.
func (f *Flow) decide(ctx context.Context, now time.Time, req *policy.Request) (*basis, policy.Decision) {
	if gone := f.d.goneWhy(); gone != nil {
		dec := *gone
		dec.ID, dec.App, dec.Time = newID("d-"), f.begin.App.Name, now
		return nil, dec
	}
	on := f.basis(now, req)
	return on, f.m.answer(ctx, on)
}

// basis is what the Flow is decided on now.
func (f *Flow) basis(now time.Time, req *policy.Request) *basis {
	on := &basis{facts: f.d.facts(now, f.m.cfg.Elapsed()), question: policy.Question{
		Time: now.UTC(), Action: f.begin.Action, App: policy.AppRef{Name: f.begin.App.Name, Protocol: f.begin.App.Protocol},
	}}
	if f.begin.Action == policy.ActionFlow {
		on.question.Flow = &policy.Flow{Port: f.begin.Port}
	} else {
		on.question.Request = req
	}
	return on
}

// openKind tells what stays open from what is one exchange.
func (f *Flow) openKind(req *policy.Request) audit.Kind {
	if f.begin.Action == policy.ActionFlow || (req != nil && req.Upgrade != "") {
		return audit.KindFlowOpen
	}
	return audit.KindDecision
}

func (f *Flow) record(on *basis, dec policy.Decision, kind audit.Kind) *audit.Record {
	r := &audit.Record{}
	f.fill(r, on, dec, kind, nil)
	return r
}

// fill makes a record, with its Input in room if there is enough.
func (f *Flow) fill(r *audit.Record, on *basis, dec policy.Decision, kind audit.Kind, room []byte) {
	*r = audit.Record{Kind: kind, Device: f.d.record.ID, Flow: f.id, App: f.begin.App.Name, RequestHash: f.begin.RequestHash}
	r.SetDecision(dec)
	if on != nil {
		factsOf(on.facts).note(r)
		if req := on.question.Request; req != nil {
			r.Method, r.Host, r.Path = req.Method, req.Host, req.Path
		}
		on.keep(r, room)
	}
}

func (f *Flow) renew() { f.renewUntil(math.MaxInt64) }

// renewUntil gives the Flow another lease, which ends at a time at the latest.
func (f *Flow) renewUntil(last time.Duration) {
	f.leaseEnd.Store(int64(min(f.m.cfg.Elapsed()+f.m.cfg.Lease, last)))
}

// Check says whether one more chunk may pass. It is called before every chunk.
// A lease that ran out, because the process or the machine stood still, is
// decided again before any byte.
func (f *Flow) Check() error {
	if f.over.Load() {
		return ErrCut
	}
	if int64(f.m.cfg.Elapsed()) <= f.leaseEnd.Load() {
		return nil
	}
	now := f.m.cfg.Now()
	f.d.mu.Lock()
	expired := f.d.expireLocked(now, f.m.cfg.Elapsed())
	f.d.mu.Unlock()
	f.m.noteExpired(expired, now)
	f.confirm(now, nil)
	f.awaitDrain()
	if f.over.Load() || int64(f.m.cfg.Elapsed()) > f.leaseEnd.Load() {
		return ErrCut
	}
	return nil
}

// OnCut sets what is run once when the Flow is cut, in the cutting goroutine:
// it must not block. On a Flow that is cut already it runs at once.
func (f *Flow) OnCut(fn func()) {
	f.mu.Lock()
	if f.cut == nil {
		f.onCut = fn
		fn = nil
	}
	f.mu.Unlock()
	if fn != nil {
		fn()
	}
}

// Cut returns the Decision that cut the Flow, if one did.
func (f *Flow) Cut() (policy.Decision, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cut == nil {
		return policy.Decision{}, false
	}
	return *f.cut, true
}

// Facts returns who the Flow belongs to, as of the Decision that allowed it.
func (f *Flow) Facts() Facts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.facts
}

// condemnOwned condemns an open Flow of a Session that has ended: nobody is left
// whose it could be, so no policy is asked. One that is still being decided is
// left to its own epoch comparison.
func (f *Flow) condemnOwned(session string, reason policy.Reason) (kill func()) {
	f.mu.Lock()
	open := f.decided && !f.ended && f.cut == nil && f.held.facts.Session() != nil && f.held.facts.Session().ID == session
	f.mu.Unlock()
	if !open {
		return nil
	}
	return f.condemn(nil, policy.NewDecision(reason, nil))
}

// cutWith cuts the Flow: no byte passes after it returns but those already
// handed to the system. on is what was decided on, nil when no policy was asked.
func (f *Flow) cutWith(on *basis, dec policy.Decision) {
	if kill := f.condemn(on, dec); kill != nil {
		kill()
	}
}

// condemn is the quick half of a cut: no chunk is let through any more, and the
// record is queued, whatever the log's state. What it returns, unless it is nil,
// must be run: it ends the connections, with what is queued on them. Whoever has
// many to cut condemns all of them first. A Flow that is still being decided is
// not recorded: its Authorize sees the cut and refuses.
func (f *Flow) condemn(on *basis, dec policy.Decision) (kill func()) {
	f.mu.Lock()
	if f.cut != nil || f.ended {
		f.mu.Unlock()
		return nil
	}
	if dec.ID == "" {
		dec.ID, dec.Time = newID("d-"), f.m.cfg.Now()
	}
	dec.App = f.begin.App.Name
	f.cut = &dec
	fn, decided, facts, req, drained := f.onCut, f.decided, f.facts, f.request, f.drain.detail()
	f.onCut = nil
	f.mu.Unlock()
	f.leaseEnd.Store(-1)
	f.over.Store(true)
	if decided {
		f.m.cuts.Add(1)
		f.noteCut(on, dec, facts, req, drained) // never blocks
	}
	return func() {
		f.finish()
		if fn != nil {
			fn()
		}
	}
}

func (f *Flow) noteCut(on *basis, dec policy.Decision, facts Facts, req *policy.Request, drained map[string]string) {
	r := f.record(on, dec, audit.KindFlowCut)
	r.Detail = drained
	facts.note(r)
	if req != nil {
		r.Method, r.Host, r.Path = req.Method, req.Host, req.Path
	}
	r.DurationMS = f.m.cfg.Now().Sub(f.opened).Milliseconds()
	f.m.cfg.Audit.NoteEnd(*r)
}

// End takes the Flow out of the registry. It is called exactly once, whatever
// happened; more calls do nothing. The end of a TCP or UDP flow and of a
// WebSocket is recorded, and any end that was the app's or the device's fault or
// of what was draining.
func (f *Flow) End(res Result) {
	f.mu.Lock()
	if f.ended {
		f.mu.Unlock()
		return
	}
	f.ended = true
	f.onCut = nil
	decided, long, wasCut, facts, last := f.decided, f.longLive, f.cut != nil, f.facts, f.last
	draining, begun := f.drain.on, f.drain.on && f.drain.await == nil
	f.mu.Unlock()
	f.finish()
	f.d.mu.Lock()
	delete(f.d.flows, f)
	if draining {
		f.d.drained()
	}
	f.d.mu.Unlock()
	f.m.flows.Add(-1)
	failed := strings.HasPrefix(res.Outcome, "upstream_")
	faulty := failed || strings.HasPrefix(res.Outcome, "device_")
	if begun && !wasCut && !faulty {
		res.Outcome, long = "drained", true
	}
	if !decided || (wasCut && !long) || (!long && !faulty) {
		return
	}
	kind := audit.KindFlowClose
	if failed && !wasCut {
		kind = audit.KindUpstreamError
	}
	r := audit.Record{
		Kind: kind, Decision: last.ID, Device: f.d.record.ID, Flow: f.id, App: f.begin.App.Name, Revision: last.Revision,
		Outcome: res.Outcome, Status: res.Status, BytesIn: res.BytesIn, BytesOut: res.BytesOut,
		DurationMS: f.m.cfg.Now().Sub(f.opened).Milliseconds(),
	}
	facts.note(&r)
	f.m.cfg.Audit.NoteEnd(r)
}

// newID returns 128 random bits in hex after a prefix that says of what.
func newID(prefix string) string {
	var b [16]byte
	rand.Read(b[:])
	return prefix + hex.EncodeToString(b[:])
}
