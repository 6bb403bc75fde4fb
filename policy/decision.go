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
)

// Entry is what a Reason says to people.
type Entry struct {
	Message string
	// Remedy says what to do, and who can.
	Remedy string
}

// Reasons is the closed table: adding a Reason is one constant and one entry.
var Reasons = map[Reason]Entry{
	ReasonAllowed:             {"Access is allowed.", ""},
	ReasonUnknownApp:          {"There is no such app for this device.", "Check the name with: portvakt-agent apps"},
	ReasonLoginRequired:       {"You are not logged in.", "Log in with: portvakt-agent login"},
	ReasonSessionExpired:      {"Your login has expired.", "Log in again with: portvakt-agent login"},
	ReasonSessionRevoked:      {"Your login was ended by an administrator or by your identity provider.", "Log in again with: portvakt-agent login. If that is refused too, ask your IT support."},
	ReasonDeviceRevoked:       {"This laptop is no longer allowed to connect.", "Ask your IT support; they can enrol it again."},
	ReasonGroupNotAllowed:     {"Your account is in none of the groups that may use this app.", "If you need it for your work, ask your supervisor to have your account added to one of the groups."},
	ReasonPostureFailed:       {"This laptop does not meet a condition of the app.", "Turn on what is named above; access returns within seconds. If you cannot, ask your IT support."},
	ReasonPostureUnknown:      {"A condition of the app could not be checked on this laptop.", "Ask your IT support to look at the named check (a missing posture helper is the usual cause)."},
	ReasonPostureStale:        {"This laptop has not reported its condition lately.", "Check that portvakt-agent is running; it reports every 30 seconds."},
	ReasonLocationNotAllowed:  {"The app may not be used from where you are.", "Use it from an allowed place. A VPN or a travel router may make you appear elsewhere: turn it off."},
	ReasonLocationUnknown:     {"Where you are could not be determined, and the app requires it.", "Turn off VPNs and try your home network. If it persists, ask your IT support."},
	ReasonOutsideHours:        {"The app may not be used at this time.", "Try again within the hours named above, or ask your supervisor."},
	ReasonMethodNotAllowed:    {"You may use this app, but not for this action.", "If your work needs this action, ask your supervisor."},
	ReasonPathNotAllowed:      {"You may use this app, but not this part of it.", "If your work needs this part, ask your supervisor."},
	ReasonPolicyDenied:        {"A rule of your company refuses this.", "Ask your IT support; tell them the decision's number."},
	ReasonCrossSite:           {"Another web page tried to use this app in your name.", "Open the app itself from its address. If you did, tell your IT support which page sent you."},
	ReasonPolicyUnavailable:   {"The gateway has no valid policy yet, so it refuses everything.", "Ask your IT support to look at the gateway's policy files."},
	ReasonPolicyError:         {"The policy could not be evaluated, so the gateway refuses.", "Ask your IT support; tell them the decision's number."},
	ReasonAuditUnavailable:    {"The gateway cannot record what happens, so it lets nothing new through.", "Try again in a moment; your IT support is being alerted by the gateway's health page."},
	ReasonUpstreamUnavailable: {"The app itself does not answer.", "Try again in a moment. If it persists, tell your IT support that the app is down."},
	ReasonUpstreamForbidden:   {"The app's address is one that the gateway must not dial.", "Ask your IT support to name the address range under the app's `allow`."},
	ReasonBadRequest:          {"The request was not understood in only one way, so it was refused.", "Open the app's address anew. If it persists, ask your IT support."},
	ReasonMisdirected:         {"The request named a host that is not one of this app's.", "Open the app by its own address."},
	ReasonTooManyFlows:        {"This laptop has too many connections open.", "Close what you do not need and try again."},
}

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
	return Decision{Reason: r, Message: e.Message, Remedy: e.Remedy, Fact: fact}
}
