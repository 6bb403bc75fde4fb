// Package admin is the gateway's Unix socket for administrators of its own
// machine: whoever may open it (the gateway's user and root, and the members of
// a group when one is configured) may use it, and the kernel says who that is. Every act is recorded with that
// name. [Client] is the other end, for the portvakt-gateway commands.
package admin

import (
	"time"

	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

// Invite asks for an enrolment code.
type Invite struct {
	Name    string        `json:"name,omitempty"`   // for the device; empty: what the device says
	Serial  string        `json:"serial,omitempty"` // only this serial number may redeem it
	Expires time.Duration `json:"expires"`          // from now; 0 means 24 h
}

// Invited is a new code. It is shown once; the gateway keeps only its hash.
type Invited struct {
	Code      string    `json:"code"`
	URL       string    `json:"url"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Device is an enrolled device.
type Device struct {
	ID         string         `json:"id"`
	Name       string         `json:"name"`
	Serial     string         `json:"serial,omitempty"`
	OS         string         `json:"os"`
	KeyTier    string         `json:"key_tier"`
	Status     string         `json:"status"` // enrolled, connected or revoked
	Addresses  []string       `json:"addresses"`
	EnrolledAt time.Time      `json:"enrolled_at"`
	LastSeen   time.Time      `json:"last_seen"`
	RevokedAt  *time.Time     `json:"revoked_at,omitempty"`
	RevokedBy  string         `json:"revoked_by,omitempty"`
	Reason     string         `json:"revoked_reason,omitempty"`
	Session    *Session       `json:"session,omitempty"`
	Location   *wire.Location `json:"location,omitempty"` // while connected
	Posture    []wire.Signal  `json:"posture,omitempty"`  // while connected
	Flows      int            `json:"flows"`
}

// Session is a login.
type Session struct {
	ID        string     `json:"id"`
	Subject   string     `json:"subject"` // ISS#SUB
	Name      string     `json:"name"`
	Groups    []string   `json:"groups"`
	Device    string     `json:"device"`
	OSUser    string     `json:"os_user"`
	StartedAt time.Time  `json:"started_at"`
	ExpiresAt time.Time  `json:"expires_at"`
	EndedAt   *time.Time `json:"ended_at,omitempty"`
	EndReason string     `json:"end_reason,omitempty"`
	EndedBy   string     `json:"ended_by,omitempty"`
	Active    bool       `json:"active"`
}

// App is an app of the active revision.
type App struct {
	Name       string   `json:"name"`
	Title      string   `json:"title"`
	Protocol   string   `json:"protocol"`
	Hosts      []string `json:"hosts"`
	Ports      []uint16 `json:"ports"`
	Addresses  []string `json:"addresses"`
	Upstream   string   `json:"upstream"`
	Visibility string   `json:"visibility"`
	Durability string   `json:"durability"`
	OnLoss     string   `json:"on_loss"` // cut, or drain DURATION
}

// Flow is something open.
type Flow struct {
	ID         string    `json:"id"`
	App        string    `json:"app"`
	Protocol   string    `json:"protocol"`
	Device     string    `json:"device"`
	DeviceName string    `json:"device_name"`
	Subject    string    `json:"subject,omitempty"` // ISS#SUB
	Name       string    `json:"name,omitempty"`    // the person's
	Session    string    `json:"session,omitempty"`
	OpenedAt   time.Time `json:"opened_at"`
	State      string    `json:"state"` // open or draining
	// DrainUntil is when a draining flow is cut, Reason what took its permission.
	DrainUntil *time.Time `json:"drain_until,omitempty"`
	Reason     string     `json:"reason,omitempty"`
}

// Revoke ends a device or a session.
type Revoke struct {
	Reason string `json:"reason,omitempty"`
}

// Erase asks that the log's personal data of one subject (ISS#SUB, or a name
// that logged in), or of one device whose user was not known, can be opened by
// nobody any more.
type Erase struct {
	Subject string `json:"subject,omitempty"`
	Device  string `json:"device,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

// TrustClock asks that the gateway's clock is believed although it leapt.
type TrustClock struct {
	Reason string `json:"reason,omitempty"`
}

// Why asks what policy would say. What is not given comes from the Subject's
// live session.
type Why struct {
	App     string `json:"app"`
	Subject string `json:"subject,omitempty"` // ISS#SUB or a name
	Device  string `json:"device,omitempty"`
	// Groups, when not nil, are the groups to suppose instead of the real ones.
	Groups  []string          `json:"groups,omitzero"`
	Signals map[string]string `json:"signals,omitempty"` // name -> pass, fail or unknown
	From    string            `json:"from,omitempty"`    // outer address
	At      *time.Time        `json:"at,omitempty"`
	Method  string            `json:"method,omitempty"`
	Path    string            `json:"path,omitempty"`
}

// Because answers Why.
type Because struct {
	wire.Denial
	Rule string `json:"rule,omitempty"`
	// Basis says where the facts came from, for people.
	Basis string        `json:"basis"`
	Input *policy.Input `json:"input"`
}

// Items is the form of every list.
type Items[T any] struct {
	Items []T `json:"items"`
}
