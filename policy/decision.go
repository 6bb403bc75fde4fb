// Package policy is the policy decision point: the app catalogue IT writes,
// the Rego that ships with it and the Rego that IT drops beside it, and the
// Engine that turns an Input into a Decision. It does no I/O on the way to a
// Decision, and imports nothing else of Portvakt.
package policy

import (
	"fmt"
	"time"
)

// Decision says whether something is allowed and why. The zero Decision
// denies. Its JSON is the Denial that clients, `why` and the audit log show.
type Decision struct {
	ID     string `json:"decision"`
	Allow  bool   `json:"allow"`
	Reason Reason `json:"reason"`
	// Message is one plain sentence, Remedy what to do; both come from the
	// Reason's entry, or from the Rego module that denied.
	Message string `json:"message"`
	Fact    *Fact  `json:"fact,omitempty"`
	Remedy  string `json:"remedy,omitempty"`
	App     string `json:"app,omitempty"`
	// Rule names the access rule that allowed, or that came closest to it
	// ("crm.access[0]"), or the custom module that refused ("custom.travel").
	Rule     string    `json:"rule,omitempty"`
	Revision string    `json:"revision,omitempty"`
	Time     time.Time `json:"time"`
}

// Fact is the fact that decided, with its value and what was wanted.
type Fact struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Wanted string `json:"wanted"`
}

// Reason is a code of the closed table.
type Reason string

// The Reasons. Each has an entry in the table below; a test keeps the two equal.
const (
	ReasonAllowed             Reason = "allowed"
	ReasonUnknownApp          Reason = "unknown_app"
	ReasonLoginRequired       Reason = "login_required"
	ReasonSessionExpired      Reason = "session_expired"
	ReasonSessionRevoked      Reason = "session_revoked"
	ReasonDeviceRevoked       Reason = "device_revoked"
	ReasonGroupNotAllowed     Reason = "group_not_allowed"
	ReasonPostureFailed       Reason = "posture_failed"
	ReasonPostureUnknown      Reason = "posture_unknown"
	ReasonPostureStale        Reason = "posture_stale"
	ReasonLocationNotAllowed  Reason = "location_not_allowed"
	ReasonLocationUnknown     Reason = "location_unknown"
	ReasonOutsideHours        Reason = "outside_hours"
	ReasonMethodNotAllowed    Reason = "method_not_allowed"
	ReasonPathNotAllowed      Reason = "path_not_allowed"
	ReasonPolicyDenied        Reason = "policy_denied"
	ReasonCrossSite           Reason = "cross_site"
	ReasonPolicyUnavailable   Reason = "policy_unavailable"
	ReasonPolicyError         Reason = "policy_error"
	ReasonAuditUnavailable    Reason = "audit_unavailable"
	ReasonUpstreamUnavailable Reason = "upstream_unavailable"
	ReasonUpstreamForbidden   Reason = "upstream_forbidden"
	ReasonBadRequest          Reason = "bad_request"
	ReasonMisdirected         Reason = "misdirected"
	ReasonTooManyFlows        Reason = "too_many_flows"
	ReasonLockedDown          Reason = "locked_down"
	ReasonIDPUnavailable      Reason = "idp_unavailable"
)

// NewDecision returns a Decision with the text of its Reason. Only the Engine
// makes allowing ones; for ReasonAllowed it panics.
func NewDecision(r Reason, fact *Fact) Decision {
	if r == ReasonAllowed {
		panic("policy: only an Engine allows")
	}
	e, ok := Reasons[r]
	if !ok {
		panic(fmt.Sprintf("policy: reason %q has no entry", r))
	}
	t := e[Languages[0]]
	return Decision{Reason: r, Message: t.Message, Remedy: t.Remedy, Fact: fact}
}
