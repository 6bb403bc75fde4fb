package policy

import "time"

// Action says which question an Input asks.
type Action string

const (
	// ActionReach asks whether the device may speak to the app at all: it
	// compiles segments and app lists. Methods and paths play no part.
	ActionReach Action = "reach"
	// ActionRequest asks about one HTTP request.
	ActionRequest Action = "request"
	// ActionFlow asks about one TCP connection or UDP exchange.
	ActionFlow Action = "flow"
)

// Input is everything a Decision is a function of. Its JSON is what Rego sees
// as `input`, what the audit log keeps, and what `opa eval -i` takes. Facts
// that are not known are absent (nil) or the word "unknown", never a guess.
type Input struct {
	// Time is when the question is asked, UTC. Rego has no other clock.
	Time   time.Time `json:"time"`
	Action Action    `json:"action"`
	App    AppRef    `json:"app"`
	Device Device    `json:"device"`
	// Subject and Session are absent when nobody is logged in. Ended then says
	// what became of the last login: session_expired, session_revoked, or
	// nothing after a logout or before the first.
	Subject  *Subject `json:"subject,omitempty"`
	Session  *Session `json:"session,omitempty"`
	Ended    string   `json:"ended,omitempty"`
	Posture  Posture  `json:"posture"`
	Location Location `json:"location"`
	Request  *Request `json:"request,omitempty"` // ActionRequest
	Flow     *Flow    `json:"flow,omitempty"`    // ActionFlow
}

// AppRef names the app that is asked about; the rest of the app is policy
// data, not input.
type AppRef struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"` // http, tcp or udp
}

// Device is the enrolled laptop.
type Device struct {
	ID         string    `json:"id"`
	Name       string    `json:"name"`
	Serial     string    `json:"serial,omitempty"`
	OS         string    `json:"os"`
	KeyTier    string    `json:"key_tier"` // attested, hardware or software
	EnrolledAt time.Time `json:"enrolled_at"`
}

// Subject is the authenticated person.
type Subject struct {
	Issuer string   `json:"issuer"`
	ID     string   `json:"sub"`
	Name   string   `json:"name,omitempty"`
	Email  string   `json:"email,omitempty"` // only when the IdP says it is verified
	Groups []string `json:"groups"`
	// Claims are the further ID token claims the gateway's configuration keeps.
	Claims map[string]any `json:"claims,omitempty"`
	// AuthenticatedAt is the ID token's auth_time, or its iat.
	AuthenticatedAt time.Time `json:"authenticated_at"`
}

// Key names the person outside of policy, in logs and to apps: ISSUER#SUBJECT.
func (s Subject) Key() string { return s.Issuer + "#" + s.ID }

// Session is the grant that binds Subject, Device and OS user.
type Session struct {
	ID        string    `json:"id"`
	OSUser    string    `json:"os_user"`
	StartedAt time.Time `json:"started_at"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Posture is the last valid report. A report that is too old is no report:
// the gateway leaves ReceivedAt nil and Signals empty then.
type Posture struct {
	ReceivedAt *time.Time        `json:"received_at,omitempty"`
	Signals    map[string]Signal `json:"signals"`
}

// Signal is one posture fact.
type Signal struct {
	State string `json:"state"` // pass, fail or unknown
	Value string `json:"value,omitempty"`
}

// Location is where the device is.
type Location struct {
	Address string `json:"address,omitempty"` // outer source address, without port
	Country string `json:"country,omitempty"` // ISO 3166-1 alpha-2; absent means unknown
}

// Request is one HTTP request, as it will be forwarded.
type Request struct {
	Method string `json:"method"`
	Host   string `json:"host"` // lower case, without port
	// Path is decoded, canonical, and begins with /. Of apps that keep encoded
	// slashes one is %2F here too, which nothing else can be: the text that was
	// %252F is refused. A segment's parameters are a part of it.
	Path string `json:"path"`
	// Upgrade is "websocket" or absent.
	Upgrade string `json:"upgrade,omitempty"`
}

// Flow is one TCP connection or UDP exchange.
type Flow struct {
	Port uint16 `json:"port"` // on the app's virtual address
}
