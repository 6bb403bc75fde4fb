// Package wire holds the messages that an agent and a gateway exchange, and
// nothing else. Both sides import it; it imports only the standard library.
//
// Two surfaces speak it, and docs/protocol.md describes both for people who
// hold only curl and openssl:
//
//   - the public TLS port (enroll, renew, connect), where the agent knows the
//     gateway by its internal CA and the gateway knows the device by its
//     certificate;
//   - the gateway's own address inside the tunnel (everything else), where the
//     tunnel proves the device and a control token proves that the caller is
//     the agent and not a web page.
package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"time"
)

// InternalName is the TLS server name an agent asks for. The gateway answers
// it with a certificate of its internal CA whatever certificate it shows the
// public, so that an agent never depends on the public PKI.
const InternalName = "gateway.portvakt.internal"

// Endpoints of the public TLS port.
const (
	PathEnroll  = "/v1/enroll"  // POST EnrollRequest -> EnrollResponse; no client certificate
	PathRenew   = "/v1/renew"   // POST RenewRequest -> EnrollResponse; device certificate, also an expired one
	PathConnect = "/v1/connect" // POST ConnectRequest -> ConnectResponse; device certificate
	PathTunnel  = "/v1/tunnel"  // GET, upgraded to a WebSocket of WireGuard datagrams; device certificate
	PathJWKS    = "/.well-known/portvakt/jwks.json"
)

// Endpoints of the gateway's own address inside the tunnel, plain HTTP on
// ControlPort. Every call carries [TokenHeader] and no Origin.
const (
	PathState         = "/v1/state"          // GET -> State
	PathEvents        = "/v1/events"         // GET -> stream of Event, one JSON object a line
	PathRegistration  = "/v1/registration"   // POST -> RegistrationResponse: keep the tunnel key for longer
	PathLogin         = "/v1/login"          // POST LoginRequest -> LoginResponse
	PathLoginComplete = "/v1/login/complete" // POST LoginComplete -> State
	PathLogout        = "/v1/logout"         // POST -> State
	PathPosture       = "/v1/posture"        // POST SignedReport -> PostureResponse
	PathWhy           = "/v1/why"            // GET ?app=NAME -> Denial (Allow may be true)
)

// ControlPort is the TCP port of the control API on the gateway's own inner
// addresses.
const ControlPort = 80

// TokenHeader carries the control token of a registration.
const TokenHeader = "Portvakt-Control-Token"

// MaxBody bounds every request body of both surfaces, in bytes.
const MaxBody = 64 << 10

// EventHeartbeat is the longest silence on an event stream. An agent that
// hears nothing for three of them takes the tunnel for dead and connects anew.
const EventHeartbeat = 5 * time.Second

// ReportInterval is how often an agent sends a posture report when nothing
// changed.
const ReportInterval = 30 * time.Second

// RenewRegistrationEvery is how often a connected agent extends its registration.
const RenewRegistrationEvery = 30 * time.Minute

// EnrollRequest redeems an enrolment code.
type EnrollRequest struct {
	// Code is the secret part of the enrolment code (see [Code]).
	Code string `json:"code"`
	// CSR is a PKCS #10 request in PEM, signed with the device key. Only its
	// public key is taken from it.
	CSR string `json:"csr"`
	// Device says what the device calls itself.
	Device DeviceInfo `json:"device"`
}

// DeviceInfo is what a device says about itself at enrolment. None of it is
// proof; a code that names a serial number is only redeemed by that one.
type DeviceInfo struct {
	Name   string `json:"name"`
	OS     string `json:"os"` // GOOS
	Arch   string `json:"arch"`
	Serial string `json:"serial,omitempty"`
	// KeyTier says where the device key lives: attested, hardware or software.
	KeyTier string `json:"key_tier"`
}

// RenewRequest asks for a new certificate for the same device key.
type RenewRequest struct {
	CSR string `json:"csr"`
}

// EnrollResponse answers enroll and renew.
type EnrollResponse struct {
	DeviceID    string    `json:"device_id"`
	Certificate string    `json:"certificate"` // PEM, the device's
	CA          string    `json:"ca"`          // PEM, the internal root
	NotAfter    time.Time `json:"not_after"`
}

// ConnectRequest registers a fresh tunnel key.
type ConnectRequest struct {
	// TunnelKey is the device's WireGuard public key, base64 as wg prints it.
	TunnelKey string `json:"tunnel_key"`
	// BootID names this boot of the device. A new tunnel key of the same boot
	// takes a Session of the last 10 minutes along.
	BootID       string `json:"boot_id"`
	AgentVersion string `json:"agent_version"`
}

// ConnectResponse gives a device all it needs to bring its tunnel up.
type ConnectResponse struct {
	DeviceID string `json:"device_id"`
	// Addresses are the device's inner addresses, IPv4 then IPv6, the same for
	// the device's life.
	Addresses []netip.Addr  `json:"addresses"`
	Gateway   GatewayTunnel `json:"gateway"`
	// PresharedKey is WireGuard's, base64, new with every connect.
	PresharedKey string `json:"preshared_key"`
	// PostQuantum says that the TLS session of this answer used
	// X25519MLKEM768, so that the preshared key protects the tunnel from a
	// later quantum computer.
	PostQuantum  bool      `json:"post_quantum"`
	ControlToken string    `json:"control_token"`
	ExpiresAt    time.Time `json:"expires_at"` // of the registration
	DNSSuffixes  []string  `json:"dns_suffixes"`
	// RedirectPorts are the loopback ports the identity provider accepts in
	// the login's redirect; empty means any.
	RedirectPorts []uint16 `json:"redirect_ports"`
	// PostureNonce is the nonce of the first posture report.
	PostureNonce string `json:"posture_nonce"`
	// MTU of the tunnel's inside, in bytes.
	MTU int `json:"mtu"`
}

// GatewayTunnel is the gateway's end of a tunnel.
type GatewayTunnel struct {
	TunnelKey string       `json:"tunnel_key"` // WireGuard public key, base64
	Endpoints []string     `json:"endpoints"`  // host:port, UDP; a port alone (":51820") means the host of the public URL
	Addresses []netip.Addr `json:"addresses"`  // the gateway's own inner addresses, IPv4 then IPv6
}

// RegistrationResponse answers a registration's renewal.
type RegistrationResponse struct {
	ExpiresAt time.Time `json:"expires_at"`
}

// LoginRequest starts a login. State, nonce and PKCE verifier stay with the
// gateway.
type LoginRequest struct {
	// RedirectURI is the agent's loopback listener, http://127.0.0.1:PORT/callback.
	RedirectURI string `json:"redirect_uri"`
	// OSUser is the account of the operating system that logs in, as "uid:name".
	OSUser string `json:"os_user"`
}

// LoginResponse carries the page to open.
type LoginResponse struct {
	URL       string    `json:"url"`
	ExpiresAt time.Time `json:"expires_at"`
}

// LoginComplete hands the identity provider's answer to the gateway, exactly
// as it arrived at the loopback listener.
type LoginComplete struct {
	State            string `json:"state"`
	Code             string `json:"code,omitempty"`
	Issuer           string `json:"iss,omitempty"` // RFC 9207
	Error            string `json:"error,omitempty"`
	ErrorDescription string `json:"error_description,omitempty"`
}

// SignedReport is a posture report and its signature.
type SignedReport struct {
	// Report is the JSON of a [Report], base64. The signature covers exactly
	// these bytes before base64.
	Report []byte `json:"report"`
	// Signature is ECDSA with SHA-256 in ASN.1 DER by the device key, base64.
	Signature []byte `json:"signature"`
}

// Report is a set of signals at one moment.
type Report struct {
	DeviceID string `json:"device_id"`
	// Nonce is the one the gateway gave last; each serves one report.
	Nonce   string    `json:"nonce"`
	BootID  string    `json:"boot_id"`
	Time    time.Time `json:"time"` // the device's clock, for the record only
	Signals []Signal  `json:"signals"`
}

// Names of the signals an agent knows. A signal without a collector on its
// platform is reported as unknown.
const (
	SignalDiskEncryption = "disk_encryption"
	SignalHostFirewall   = "host_firewall"
	SignalScreenLock     = "screen_lock"
	SignalOSUpdates      = "os_updates"
	SignalAntiMalware    = "anti_malware"
	SignalRemoteControl  = "remote_control"
)

// Signals lists every signal name in the order reports use.
var Signals = []string{
	SignalDiskEncryption, SignalHostFirewall, SignalScreenLock,
	SignalOSUpdates, SignalAntiMalware, SignalRemoteControl,
}

// States of a signal.
const (
	SignalPass    = "pass"
	SignalFail    = "fail"
	SignalUnknown = "unknown"
)

// Signal is one fact about a device.
type Signal struct {
	Name  string `json:"name"`
	State string `json:"state"` // pass, fail or unknown
	// Value is what was seen, for people ("ufw: off"); for unknown it is the
	// cause ("needs_helper", "not_supported", "error: ...").
	Value string `json:"value,omitempty"`
	// AgeSeconds is how long before the report the signal was collected.
	AgeSeconds int `json:"age_seconds"`
}

// PostureResponse answers a report. When the report was refused for its nonce
// the Error carries a fresh one too (see [Error.PostureNonce]).
type PostureResponse struct {
	Nonce string `json:"nonce"` // for the next report
}

// State is everything a gateway lets one device know about itself. Events
// carry it whole, so that an agent that missed one is right again with the
// next.
type State struct {
	DeviceID string `json:"device_id"`
	// Epoch grows with every change of a fact of this device.
	Epoch    uint64   `json:"epoch"`
	Revision string   `json:"revision"` // of the policy
	Session  *Session `json:"session,omitempty"`
	Location Location `json:"location"`
	Posture  []Signal `json:"posture"`
	Apps     []App    `json:"apps"` // the visible ones, by name
	// Finish is set while something that is open may be finished although
	// nothing new is allowed.
	Finish *Finish   `json:"finish,omitempty"`
	Time   time.Time `json:"time"` // the gateway's clock
}

// Finish says until when what is open may be finished.
type Finish struct {
	Until   time.Time `json:"until"`   // the last of it
	OSUser  string    `json:"os_user"` // whose it is, in the form of a Session's
	Message string    `json:"message"` // for the person
}

// Session is the login that is in force.
type Session struct {
	ID        string    `json:"id"`
	Subject   string    `json:"subject"` // issuer#sub
	Name      string    `json:"name"`
	Groups    []string  `json:"groups"`
	OSUser    string    `json:"os_user"`
	StartedAt time.Time `json:"started_at"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Location is where the gateway sees the device.
type Location struct {
	Address string `json:"address,omitempty"`
	Country string `json:"country,omitempty"` // ISO 3166-1 alpha-2; empty means unknown
}

// App is an app as a device sees it.
type App struct {
	Name      string       `json:"name"`
	Title     string       `json:"title"`
	Protocol  string       `json:"protocol"` // http, tcp or udp
	Hosts     []string     `json:"hosts"`
	Addresses []netip.Addr `json:"addresses"`
	Ports     []uint16     `json:"ports"`
	// DSCP of a udp app is auto or off: whether what looks like a call is marked
	// as voice on its way. An older gateway does not say, which is off.
	DSCP string `json:"dscp,omitempty"`
	// Allowed says whether the device may use the app now; Denial says why not.
	Allowed bool    `json:"allowed"`
	Denial  *Denial `json:"denial,omitempty"`
	// FinishBy is when the last of what is open of an app that is allowed no
	// more is cut.
	FinishBy *time.Time `json:"finish_by,omitempty"`
}

// DSCPAuto is the DSCP of an [App] whose calls are marked.
const DSCPAuto = "auto"

// Denial is a Decision as it is shown to people and programs. With Allow true
// it is the answer of `why` for something that is allowed.
type Denial struct {
	Decision string    `json:"decision"`
	Allow    bool      `json:"allow"`
	Reason   string    `json:"reason"`
	Message  string    `json:"message"`
	Fact     *Fact     `json:"fact,omitempty"`
	Remedy   string    `json:"remedy,omitempty"`
	App      string    `json:"app,omitempty"`
	Revision string    `json:"revision,omitempty"`
	Time     time.Time `json:"time"`
}

// Fact is the fact that decided.
type Fact struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Wanted string `json:"wanted"`
}

// Types of an Event.
const (
	EventState     = "state"     // State is set
	EventHeartBeat = "heartbeat" // nothing happened
	EventRevoked   = "revoked"   // Denial says why; the tunnel goes away now
)

// Event is one line of the event stream.
type Event struct {
	Type   string  `json:"type"`
	State  *State  `json:"state,omitempty"`
	Denial *Denial `json:"denial,omitempty"`
}

// Error is the body of every answer that is not 2xx. A refusal that policy or
// the device's status decided carries a Denial.
type Error struct {
	// Code is a Reason of the closed table (docs/protocol.md lists which
	// endpoint gives which).
	Code    string `json:"error"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
	// Retry says that the same call may succeed later without a change.
	Retry bool `json:"retry,omitempty"`
	// PostureNonce is set when a report was refused for its nonce.
	PostureNonce string  `json:"posture_nonce,omitempty"`
	Denial       *Denial `json:"denial,omitempty"`
}

// Error returns code, message and remedy in one line.
func (e *Error) Error() string {
	s := e.Message
	if s == "" {
		s = e.Code
	}
	if e.Remedy != "" {
		s += " " + e.Remedy
	}
	return s
}

// DecodeStrict decodes one JSON value and refuses unknown members and trailing
// data, so that a misspelt member is an error and not a missing fact.
func DecodeStrict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}
