package admin

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
)

// An Act gives something back, so it needs two administrators: one who asks
// for it and another who approves, within actLife.
type Act struct {
	ID          string     `json:"id"`
	Kind        string     `json:"kind"`   // lockdown_off, audit_erase or trust_clock
	Target      string     `json:"target"` // the lockdown's ID, what the log calls a person, or clock
	Reason      string     `json:"reason,omitempty"`
	RequestedBy string     `json:"requested_by"`
	RequestedAt time.Time  `json:"requested_at"`
	ExpiresAt   time.Time  `json:"expires_at"`
	Status      string     `json:"status"` // pending, expired, approved, rejected, or break_glass: done by one alone
	DecidedBy   string     `json:"decided_by,omitempty"`
	DecidedAt   *time.Time `json:"decided_at,omitempty"`
}

// BreakGlass asks for the time in which one administrator may act alone, or is it.
type BreakGlass struct {
	Reason  string     `json:"reason"`
	Minutes int        `json:"minutes,omitempty"` // 1 to 60
	By      string     `json:"by,omitempty"`
	Until   *time.Time `json:"until,omitempty"`
}

const (
	kindLockdownOff = "lockdown_off"
	kindAuditErase  = "audit_erase"
	kindTrustClock  = "trust_clock"

	actPending  = "pending"
	actApproved = "approved"
	actRejected = "rejected"
	actExpired  = "expired"
	actAlone    = "break_glass"

	actLife = 24 * time.Hour
	// actsShown is how far back the list goes.
	actsShown = 30 * 24 * time.Hour

	maxBreakGlass = 60 // minutes
)

func (s *Server) actOf(a store.Act) Act {
	out := Act{
		ID: a.ID, Kind: a.Kind, Target: a.Target, Reason: a.Reason, RequestedBy: a.RequestedBy,
		RequestedAt: a.RequestedAt.UTC(), ExpiresAt: a.ExpiresAt.UTC(), Status: a.Outcome, DecidedBy: a.DecidedBy,
	}
	switch {
	case a.Pending(s.cfg.Now()):
		out.Status = actPending
	case a.Outcome == "":
		out.Status = actExpired
	default:
		at := a.DecidedAt.UTC()
		out.DecidedAt = &at
	}
	return out
}

// uidOf is the part of an actor that the kernel vouches for: names can change.
func uidOf(actor string) string {
	parts := strings.SplitN(actor, ":", 3)
	return strings.Join(parts[:min(2, len(parts))], ":")
}

// noteAct records what became of an act. What an act grants has a record of its
// own, before it.
func (s *Server) noteAct(by, outcome string, a store.Act) {
	s.cfg.Audit.Note(audit.Record{Kind: audit.KindApproval, Actor: by, Outcome: outcome, Detail: map[string]string{
		"act": a.ID, "kind": a.Kind, "target": a.Target, "reason": a.Reason, "requested_by": a.RequestedBy,
	}})
}

// liftLockdown asks for the end of a lockdown; in a break-glass time of the one
// who asks, it happens.
func (s *Server) liftLockdown(w http.ResponseWriter, r *http.Request) {
	var req Revoke
	if err := decode(w, r, &req); err != nil {
		s.fail(w, http.StatusBadRequest, "bad_request", err.Error())
		return
	}
	if !s.lockedDown(r.PathValue("id")) {
		s.failed(w, "lockdown "+r.PathValue("id"), notFound{"lockdown", r.PathValue("id")})
		return
	}
	s.ask(w, r, kindLockdownOff, r.PathValue("id"), req.Reason)
}

// eraseAudit asks for the destruction of what opens the personal data of
// somebody in the log.
func (s *Server) eraseAudit(w http.ResponseWriter, r *http.Request) {
	var req Erase
	if err := decode(w, r, &req); err != nil {
		s.fail(w, http.StatusBadRequest, "bad_request", err.Error())
		return
	}
	if (req.Subject == "") == (req.Device == "") {
		s.fail(w, http.StatusBadRequest, "bad_request", "Name one subject or one device.")
		return
	}
	id, err := s.cfg.Audit.PersonOf("", req.Device) // perhaps of a code that no device has redeemed
	if req.Device == "" || err != nil {
		if req.Subject, err = s.scopeValue(r.Context(), store.ScopeSubject, req.Subject); err == nil {
			req.Device, err = s.scopeValue(r.Context(), store.ScopeDevice, req.Device)
		}
		if err != nil {
			s.asked(w, "erasing personal data of "+req.Subject+req.Device, err)
			return
		}
		id, err = s.cfg.Audit.PersonOf(req.Subject, req.Device)
	}
	if err != nil {
		s.fail(w, http.StatusNotFound, "not_found", "The log holds no personal data of "+req.Subject+req.Device+", or none any more.")
		return
	}
	s.ask(w, r, kindAuditErase, id, req.Reason)
}

// trustClock asks that the machine's clock is believed although it leapt: what
// is old by it is destroyed then.
func (s *Server) trustClock(w http.ResponseWriter, r *http.Request) {
	var req TrustClock
	if err := decode(w, r, &req); err != nil {
		s.fail(w, http.StatusBadRequest, "bad_request", err.Error())
		return
	}
	if !s.cfg.Audit.ClockInDoubt() {
		s.fail(w, http.StatusConflict, "believed", "The machine's clock is believed; there is nothing to do.")
		return
	}
	s.ask(w, r, kindTrustClock, "clock", req.Reason)
}

// ask stores and records that an administrator asks for an act; in a
// break-glass time of that administrator, it happens.
func (s *Server) ask(w http.ResponseWriter, r *http.Request, kind, target, reason string) {
	var id [4]byte // short, because people type it
	rand.Read(id[:])
	now := s.cfg.Now()
	asked := store.Act{
		ID: "act-" + hex.EncodeToString(id[:]), Kind: kind, Target: target, Reason: reason,
		RequestedBy: actor(r), RequestedAt: now, ExpiresAt: now.Add(actLife),
	}
	a, err := s.cfg.Store.PutAct(r.Context(), asked)
	if err != nil {
		s.failed(w, "asking for a second administrator", err)
		return
	}
	if a.ID == asked.ID {
		s.noteAct(actor(r), "requested", a)
	}
	if glass, ok := s.glassOf(actor(r)); ok {
		s.do(w, r, a, actAlone, map[string]string{"break_glass": glass.Reason})
		return
	}
	s.answer(w, s.actOf(a))
}

func (s *Server) lockedDown(id string) bool {
	return slices.ContainsFunc(s.cfg.Sessions.Lockdowns(), func(l store.Lockdown) bool { return l.ID == id })
}

// do decides an act, which only one call can, and carries it out.
func (s *Server) do(w http.ResponseWriter, r *http.Request, a store.Act, outcome string, detail map[string]string) {
	ctx, now := context.WithoutCancel(r.Context()), s.cfg.Now()
	if !s.decide(ctx, w, r, a, outcome) {
		return
	}
	all := map[string]string{"act": a.ID, "requested_by": a.RequestedBy, "why": a.Reason}
	maps.Copy(all, detail)
	var err error
	switch a.Kind {
	case kindLockdownOff:
		_, err = s.cfg.Sessions.LiftLockdown(ctx, session.Lift{ID: a.Target, By: actor(r), At: now, Detail: all})
	case kindAuditErase:
		err = s.cfg.Audit.Erase(a.Target, actor(r), all)
	case kindTrustClock:
		err = s.cfg.Audit.TrustClock(actor(r), all)
	default:
		err = fmt.Errorf("this gateway knows no act %q", a.Kind)
	}
	if err != nil {
		s.noteAct(actor(r), "failed", a)
		s.failed(w, fmt.Sprintf("%s was approved but did not happen; ask for it anew", a.ID), err)
		return
	}
	s.answerAct(w, r, a.ID)
}

// decide stores and records the outcome of a pending act, or answers why it
// cannot.
func (s *Server) decide(ctx context.Context, w http.ResponseWriter, r *http.Request, a store.Act, outcome string) bool {
	err := s.cfg.Store.DecideAct(ctx, a.ID, outcome, actor(r), s.cfg.Now())
	switch {
	case errors.Is(err, store.ErrDecided):
		s.fail(w, http.StatusConflict, "decided", a.ID+" was decided already or has expired; the list shows it.")
		return false
	case err != nil:
		s.failed(w, "deciding "+a.ID, err)
		return false
	}
	s.noteAct(actor(r), outcome, a)
	return true
}

func (s *Server) answerAct(w http.ResponseWriter, r *http.Request, id string) {
	a, err := s.cfg.Store.Act(r.Context(), id)
	if err != nil {
		s.failed(w, id, err)
		return
	}
	s.answer(w, s.actOf(a))
}

func (s *Server) approvals(w http.ResponseWriter, r *http.Request) {
	all, err := s.cfg.Store.Acts(r.Context(), s.cfg.Now().Add(-actsShown))
	if err != nil {
		s.failed(w, "listing approvals", err)
		return
	}
	out := Items[Act]{Items: []Act{}}
	for _, a := range all {
		out.Items = append(out.Items, s.actOf(a))
	}
	s.answer(w, out)
}

// approve carries an act out for somebody else than the one who asked.
func (s *Server) approve(w http.ResponseWriter, r *http.Request) {
	a, err := s.cfg.Store.Act(r.Context(), r.PathValue("id"))
	if err != nil {
		s.failed(w, "act "+r.PathValue("id"), missing("act", r.PathValue("id"), err))
		return
	}
	outcome, detail := actApproved, map[string]string(nil)
	if uidOf(a.RequestedBy) == uidOf(actor(r)) {
		glass, ok := s.glassOf(actor(r))
		if !ok {
			s.noteAct(actor(r), "refused", a)
			s.fail(w, http.StatusForbidden, "same_person",
				"You asked for it yourself; another administrator, with another user of this machine, has to approve it. When none can be reached: portvakt-gateway break-glass.")
			return
		}
		outcome, detail = actAlone, map[string]string{"break_glass": glass.Reason}
	}
	if a.Pending(s.cfg.Now()) && a.Kind == kindLockdownOff && !s.lockedDown(a.Target) {
		s.fail(w, http.StatusConflict, "lifted", a.Target+" is not in force any more; reject "+a.ID+" or let it expire.")
		return
	}
	if a.Pending(s.cfg.Now()) && a.Kind == kindAuditErase && !s.cfg.Audit.Holds(a.Target) {
		s.fail(w, http.StatusConflict, "erased", a.Target+" was erased already; reject "+a.ID+" or let it expire.")
		return
	}
	if a.Pending(s.cfg.Now()) && a.Kind == kindTrustClock && !s.cfg.Audit.ClockInDoubt() {
		s.fail(w, http.StatusConflict, "believed", "The machine's clock is believed again; reject "+a.ID+" or let it expire.")
		return
	}
	s.do(w, r, a, outcome, detail)
}

// reject ends an act; whoever asked may take it back.
func (s *Server) reject(w http.ResponseWriter, r *http.Request) {
	a, err := s.cfg.Store.Act(r.Context(), r.PathValue("id"))
	if err != nil {
		s.failed(w, "act "+r.PathValue("id"), missing("act", r.PathValue("id"), err))
		return
	}
	if s.decide(r.Context(), w, r, a, actRejected) {
		s.answerAct(w, r, a.ID)
	}
}

// breakGlass lets the caller act alone for some minutes: recorded, then said
// aloud, then so.
func (s *Server) breakGlass(w http.ResponseWriter, r *http.Request) {
	var req BreakGlass
	if err := decode(w, r, &req); err != nil {
		s.fail(w, http.StatusBadRequest, "bad_request", err.Error())
		return
	}
	req.Reason = strings.TrimSpace(req.Reason)
	wrong := ""
	switch {
	case req.Reason == "":
		wrong = "--reason: expected why, for the record and everybody else"
	case req.Minutes < 1 || req.Minutes > maxBreakGlass:
		wrong = fmt.Sprintf("--minutes %d: expected from 1 to %d", req.Minutes, maxBreakGlass)
	case req.By != "" || req.Until != nil:
		wrong = "who it is and until when is not for the caller to say"
	}
	if wrong != "" {
		s.fail(w, http.StatusBadRequest, "bad_request", wrong)
		return
	}
	length := time.Duration(req.Minutes) * time.Minute
	end := s.cfg.Sessions.Elapsed() + length
	until := s.cfg.Now().Add(length).Round(0) // without a monotonic reading, which stops during suspend
	err := s.cfg.Audit.Append(&audit.Record{Kind: audit.KindBreakGlass, Actor: actor(r), Detail: map[string]string{
		"reason": req.Reason, "minutes": strconv.Itoa(req.Minutes), "until": until.UTC().Format(time.RFC3339),
	}})
	if err != nil {
		s.failed(w, "recording a break-glass", err)
		return
	}
	s.log.Warn("break-glass: an administrator may act alone", "by", actor(r), "reason", req.Reason, "until", until.UTC().Format(time.RFC3339))
	req.By, req.Until = actor(r), &until
	s.glass.put(breakGlassTime{req, end})
	s.answer(w, req)
}

// Erase asks for the erasure of personal data in the log.
func (c *Client) Erase(ctx context.Context, req Erase) (out Act, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/audit/erase", req, &out)
}

// TrustClock asks that the gateway believes its machine's clock.
func (c *Client) TrustClock(ctx context.Context, req TrustClock) (out Act, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/audit/trust-clock", req, &out)
}

// Approvals lists the acts of the last 30 days, the latest first.
func (c *Client) Approvals(ctx context.Context) (out Items[Act], err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/approvals", nil, &out)
}

// Approve carries out what another administrator asked for.
func (c *Client) Approve(ctx context.Context, id string) (out Act, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/approvals/"+url.PathEscape(id)+"/approve", struct{}{}, &out)
}

// Reject ends an act that was asked for.
func (c *Client) Reject(ctx context.Context, id string) (out Act, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/approvals/"+url.PathEscape(id)+"/reject", struct{}{}, &out)
}

// BreakGlass begins a time in which the caller may act alone.
func (c *Client) BreakGlass(ctx context.Context, req BreakGlass) (out BreakGlass, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/break-glass", req, &out)
}
