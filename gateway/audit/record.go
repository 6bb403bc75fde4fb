// Package audit keeps the decision log: one JSON line per record, in the
// order of its sequence numbers, in one append-only file. docs/audit.md
// describes the format for people who write a reader of their own.
//
// Two promises shape it. What grants needs its record first: [Log.Append]
// returns after the line was handed to the kernel, and its error means that
// the act must not happen. What takes away never waits: [Log.Note] queues the
// record, never blocks, and counts what it could not keep; [Log.NoteEnd] keeps
// the end of what has a record of its beginning, and [Refusals] keep or count
// exactly what was refused.
package audit

import (
	"encoding/json"
	"time"

	"github.com/portvakt/portvakt/policy"
)

// Kind says what a Record is about.
type Kind string

// The Kinds. docs/audit.md has an example line of each; a test keeps the two
// equal.
const (
	KindDecision       Kind = "decision"        // an HTTP request was decided
	KindFlowOpen       Kind = "flow_open"       // a TCP, UDP or WebSocket flow was decided
	KindFlowClose      Kind = "flow_close"      // a flow ended by itself
	KindFlowDrain      Kind = "flow_drain"      // a flow may be finished although nothing new is allowed
	KindFlowCut        Kind = "flow_cut"        // a flow was cut by a changed decision
	KindEnroll         Kind = "enroll"          // a device was enrolled
	KindEnrollRefused  Kind = "enroll_refused"  // an enrolment was refused
	KindRenew          Kind = "renew"           // a device certificate was renewed
	KindConnect        Kind = "connect"         // a tunnel key was registered
	KindConnectRefused Kind = "connect_refused" // a connect or a renewal was refused
	KindLogin          Kind = "login"           // a session began
	KindLoginRefused   Kind = "login_refused"   // a login failed
	KindResume         Kind = "resume"          // a session was taken along to a new tunnel key
	KindLogout         Kind = "logout"          // the worker ended the session
	KindLogoutRefused  Kind = "logout_refused"  // a back-channel logout was refused
	KindSessionEnd     Kind = "session_end"     // the session ended otherwise
	KindPosture        Kind = "posture"         // a posture report changed a signal
	KindPostureRefused Kind = "posture_refused" // a posture report was not accepted
	KindLocation       Kind = "location"        // a device's location changed
	KindPolicy         Kind = "policy"          // a policy revision became active
	KindPolicyRefused  Kind = "policy_refused"  // a policy revision was refused
	KindRevoke         Kind = "revoke"          // a device was revoked
	KindLockdown       Kind = "lockdown"        // a lockdown was put in force or lifted
	KindApproval       Kind = "approval"        // an act that needs two administrators was asked for or decided
	KindBreakGlass     Kind = "break_glass"     // an administrator may act alone for a time
	KindInvite         Kind = "invite"          // an enrolment code was made
	KindWhy            Kind = "why"             // somebody asked what policy would say
	KindAdmin          Kind = "admin"           // an administrator looked at what is recorded
	KindUpstreamError  Kind = "upstream_error"  // an allowed request or flow did not reach its app
	KindErase          Kind = "erase"           // what opens personal data was destroyed
	KindSinkGap        Kind = "sink_gap"        // a sink goes on behind records that were removed
	KindStart          Kind = "start"           // the gateway started
	KindStop           Kind = "stop"            // the gateway stopped in order

	// The log writes these about itself.
	KindFolded    Kind = "folded"    // refusals of one form that have no record each
	KindLost      Kind = "lost"      // noted records that could not be kept
	KindRecovered Kind = "recovered" // the log was unwritable for a time
	KindTorn      Kind = "torn"      // an unfinished line was moved aside at open
)

// Record is one line of the log. Only Seq, Time and Kind are always present;
// docs/audit.md says which Kind carries which of the others. A Record never
// holds payloads, tokens, keys or cookies.
type Record struct {
	// Seq numbers the records of one log from 1, without gap or repeat. The
	// log sets it.
	Seq uint64 `json:"seq"`
	// Time is when the record was handed to the log, UTC. The log sets it.
	Time time.Time `json:"time"`
	Kind Kind      `json:"kind"`

	// The Decision, where one was made; see [Record.SetDecision].
	Decision string       `json:"decision,omitempty"`
	Allow    *bool        `json:"allow,omitempty"`
	Reason   string       `json:"reason,omitempty"`
	Message  string       `json:"message,omitempty"`
	Fact     *policy.Fact `json:"fact,omitempty"`
	Remedy   string       `json:"remedy,omitempty"`
	App      string       `json:"app,omitempty"`
	Rule     string       `json:"rule,omitempty"`

	Subject string `json:"subject,omitempty"` // ISS#SUB
	Device  string `json:"device,omitempty"`  // its ID
	Session string `json:"session,omitempty"`
	Flow    string `json:"flow,omitempty"`
	Method  string `json:"method,omitempty"`
	Host    string `json:"host,omitempty"`
	Path    string `json:"path,omitempty"` // decoded and canonical, as it was decided on
	// RequestHash is the SHA-256 of the canonical request, in hex.
	RequestHash string `json:"request_hash,omitempty"`
	Remote      string `json:"remote,omitempty"`   // outer source address
	Revision    string `json:"revision,omitempty"` // of the policy
	Actor       string `json:"actor,omitempty"`    // who acted, when it was not the Subject

	Outcome    string            `json:"outcome,omitempty"`
	Status     int               `json:"status,omitempty"`    // HTTP status sent to the client
	BytesIn    int64             `json:"bytes_in,omitempty"`  // from the device to the app
	BytesOut   int64             `json:"bytes_out,omitempty"` // from the app to the device
	DurationMS int64             `json:"duration_ms,omitempty"`
	Detail     map[string]string `json:"detail,omitempty"`

	// Input is the policy.Input that was decided on, enough to reproduce the
	// Decision.
	Input json.RawMessage `json:"input,omitempty"`
	// Person stands for whoever the sealed members are about. Sealed holds those
	// of people.Person (in older records all of them), SealedFields those of the
	// other fields by name; see [Log.Reveal]. The log sets all three.
	Person       string            `json:"person,omitempty"`
	Sealed       string            `json:"sealed,omitempty"`
	SealedFields map[string]string `json:"sealed_fields,omitempty"`
	// Erased says that the keys of what was sealed were destroyed, Expired names
	// the fields of which they were when there are others, Unreadable those that
	// cannot be opened for another reason. None is ever in the log.
	Erased     bool     `json:"erased,omitempty"`
	Expired    []string `json:"expired,omitempty"`
	Unreadable []string `json:"unreadable,omitempty"`
	// InputCompact says that Input is known to be valid JSON without spaces, as
	// policy.Facts writes it, and needs no look at that.
	InputCompact bool `json:"-"`
}

// Names says whether a record is of a decision, or of refusals folded into one
// whose first or last it is.
func (r *Record) Names(decision string) bool {
	if decision == "" {
		return false
	}
	return r.Decision == decision ||
		r.Kind == KindFolded && (r.Detail["first_decision"] == decision || r.Detail["last_decision"] == decision)
}

// NotFound is what is said of a decision without a record.
const NotFound = "no record has that decision ID or number (of refusals that were folded into one record, only the first and the last have their IDs in it)"

// SetDecision copies what d says into the record.
func (r *Record) SetDecision(d policy.Decision) {
	allow := d.Allow
	r.Decision, r.Allow, r.Reason, r.Message = d.ID, &allow, string(d.Reason), d.Message
	r.Fact, r.Remedy, r.App, r.Rule, r.Revision = d.Fact, d.Remedy, d.App, d.Rule, d.Revision
}
