package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/netip"
	"time"

	"github.com/portvakt/portvakt/policy"
)

// Errors that callers branch on.
var (
	// ErrNotFound: there is no row with that id.
	ErrNotFound = errors.New("not found")
	// ErrInviteUnknown: no code with that secret was ever made.
	ErrInviteUnknown = errors.New("the enrolment code is unknown")
	// ErrInviteUsed: the code was redeemed before.
	ErrInviteUsed = errors.New("the enrolment code was used already")
	// ErrInviteExpired: the code's time is over.
	ErrInviteExpired = errors.New("the enrolment code has expired")
	// ErrInviteSerial: the code is for a device with another serial number.
	ErrInviteSerial = errors.New("the enrolment code is for a device with another serial number")
	// ErrKeyTaken: the device key or tunnel key belongs to another device,
	// perhaps a revoked one.
	ErrKeyTaken = errors.New("the key belongs to another device")
	// ErrRevoked: the device was revoked.
	ErrRevoked = errors.New("the device was revoked")
)

// Ends of a Session that the store itself decides.
const (
	// EndSuperseded: the device registered without taking its session along,
	// or another session began on it.
	EndSuperseded = "superseded"
	// EndExpired: the session had expired and nobody had said so.
	EndExpired = "session_expired"
	// EndDeviceRevoked: its device was revoked.
	EndDeviceRevoked = "device_revoked"
)

// ResumeWithin is how long before a new registration a session may have been
// seen last and still be taken along.
const ResumeWithin = 10 * time.Minute

// Device is an enrolled laptop.
type Device struct {
	ID, Name, Serial, OS, Arch, KeyTier string
	KeyHash                             [32]byte      // SHA-256 of the device key's SubjectPublicKeyInfo
	PublicKey                           []byte        // that SubjectPublicKeyInfo, DER; posture reports are verified with it
	Addresses                           [2]netip.Addr // inner IPv4 and IPv6, for the device's life
	EnrolledAt, LastSeen                time.Time
	RevokedAt                           time.Time // zero: not revoked
	RevokedReason, RevokedBy            string
}

// Revoked tells whether the device was revoked.
func (d Device) Revoked() bool { return !d.RevokedAt.IsZero() }

// Invite is an enrolment code. Only the hash of its secret is ever known here.
type Invite struct {
	SecretHash           [32]byte
	Name                 string // names the device; empty: the device names itself
	Serial               string // only this device may redeem it; empty: any
	CreatedBy            string
	CreatedAt, ExpiresAt time.Time
	UsedAt               time.Time // zero: not used
	DeviceID             string    // that redeemed it
}

// DeviceOf is the ID of the device that is enrolled with the code of that hash.
// It follows from the code, of which it tells nothing: so what is recorded of
// the code, before there is a device, is recorded of that device.
func DeviceOf(secretHash [32]byte) string {
	h := sha256.Sum256(append([]byte("portvakt device\x00"), secretHash[:]...))
	return "dev-" + hex.EncodeToString(h[:8])
}

// Redeem asks for a Device in exchange for a code.
type Redeem struct {
	SecretHash [32]byte
	// Device has its ID, KeyHash and what it says about itself; addresses and
	// times are given by the store.
	Device Device
	Now    time.Time
}

// Registration is one tunnel key of a device.
type Registration struct {
	DeviceID             string
	TunnelKey            [32]byte
	PresharedKey         [32]byte // encrypted in the file
	TokenHash            [32]byte // of the control token
	BootID, AgentVersion string
	PostQuantum          bool
	Tunnel               Tunnel // see [Store.KeepTunnels]
	CreatedAt, ExpiresAt time.Time
}

// Tunnel is what is known of a registration's tunnel.
type Tunnel struct {
	Endpoint    netip.AddrPort // where the device was seen last
	HandshakeAt time.Time      // when its last handshake was complete; zero: never
	Initiation  []byte         // the newest handshake initiation accepted; nil: none, or none newer to keep
}

// Session binds a Subject to a Device and an OS user.
type Session struct {
	ID, DeviceID, OSUser string
	Subject              policy.Subject
	SID                  string // of the identity provider's own session; "" when it gave none
	BootID               string
	StartedAt, ExpiresAt time.Time
	EndedAt              time.Time // zero: not ended; it may have expired
	EndReason, EndedBy   string
	LastSeen             time.Time
}

// SessionFilter selects sessions. The zero filter selects all.
type SessionFilter struct {
	// Active selects sessions that have neither ended nor expired at the
	// store's clock.
	Active bool
	// Open selects sessions that have not ended, expired or not: what a
	// starting gateway has to tidy up.
	Open     bool
	DeviceID string
}

// Revocation takes a device away.
type Revocation struct {
	DeviceID, Reason, By string
	At                   time.Time
}

// End ends a session.
type End struct {
	SessionID, Reason, By string
	At                    time.Time
}
