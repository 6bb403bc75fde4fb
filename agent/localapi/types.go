// Package localapi is how the commands of portvakt-agent speak to the running
// agent: HTTP over a Unix socket whose caller the kernel names.
//
// On Linux and macOS the caller's uid decides what they may see and do. On
// Windows the socket is AF_UNIX as well; its peer cannot be named there, so
// that login and logout are refused. That build compiles and has never run on
// the real system.
package localapi

import (
	"net/netip"
	"time"

	"github.com/portvakt/portvakt/agent/control"
	"github.com/portvakt/portvakt/internal/wire"
)

// Endpoints of the socket.
const (
	PathStatus = "/v1/status" // GET -> Status
	PathApps   = "/v1/apps"   // GET -> Apps
	PathWhy    = "/v1/why"    // GET ?app=NAME -> wire.Denial
	PathLogin  = "/v1/login"  // POST -> stream of LoginEvent
	PathLogout = "/v1/logout" // POST -> Status
)

// States of an agent's connection.
const (
	StateConnecting = "connecting" // on the way, no trouble known
	StateConnected  = "connected"
	StateWaiting    = "waiting" // Trouble says for what; the agent keeps trying
	StateRevoked    = "revoked" // Denial says why
)

// Modes of an agent's tunnel: what its inside is.
const (
	ModeUserspace = "userspace" // a stack of the agent's own, reached through its loopback proxies
	ModeTUN       = "tun"       // an interface of the operating system
)

// Status is everything an agent knows about itself. A caller who is neither
// the logged-in OS user nor the agent's own gets State, Version, InUse and Trouble only.
type Status struct {
	State   string `json:"state"`
	Version string `json:"version"`
	// InUse says that somebody is logged in, or finishes what is open.
	InUse bool `json:"in_use"`
	// Limited says that the rest is withheld from this caller.
	Limited bool `json:"limited,omitempty"`

	Gateway              string           `json:"gateway,omitempty"`
	DeviceID             string           `json:"device_id,omitempty"`
	CertificateExpiresAt *time.Time       `json:"certificate_expires_at,omitempty"`
	Since                time.Time        `json:"since"` // of State
	Trouble              *control.Trouble `json:"trouble,omitempty"`
	// RetryAt is when the agent tries again by itself.
	RetryAt *time.Time `json:"retry_at,omitempty"`
	// Denial is set when the gateway refuses this device.
	Denial *wire.Denial `json:"denial,omitempty"`
	// Mode says what the inside of the tunnel is.
	Mode    string        `json:"mode,omitempty"`
	Tunnel  *Tunnel       `json:"tunnel,omitempty"`
	DNS     *DNS          `json:"dns,omitempty"` // with ModeTUN
	Proxy   *Proxy        `json:"proxy,omitempty"`
	Session *wire.Session `json:"session,omitempty"`
	// Finish says until when what is open may be finished.
	Finish   *wire.Finish  `json:"finish,omitempty"`
	Location wire.Location `json:"location"`
	Posture  []wire.Signal `json:"posture,omitempty"` // as this laptop sees itself now
	// PostureSentAt is when the gateway took the last report.
	PostureSentAt *time.Time `json:"posture_sent_at,omitempty"`
	Epoch         uint64     `json:"epoch,omitempty"`
	Revision      string     `json:"revision,omitempty"`
	// ClockSkewSeconds is how far this laptop's clock is ahead of the gateway's.
	ClockSkewSeconds int64 `json:"clock_skew_seconds,omitempty"`
}

// Tunnel is the tunnel that is up.
type Tunnel struct {
	Endpoint string `json:"endpoint"`
	// Transport is "udp" or "websocket"; TransportReason is why it is not simply
	// UDP, in a sentence, or empty.
	Transport string `json:"transport"`
	// MTU of the tunnel's inside, in bytes, as far as it is proven to pass.
	MTU             int          `json:"mtu"`
	TransportReason string       `json:"transport_reason,omitempty"`
	Addresses       []netip.Addr `json:"addresses"` // the device's inner ones
	Gateway         []netip.Addr `json:"gateway"`   // the gateway's inner ones
	LastHandshake   *time.Time   `json:"last_handshake,omitempty"`
	RxBytes         uint64       `json:"rx_bytes"`
	TxBytes         uint64       `json:"tx_bytes"`
	PostQuantum     bool         `json:"post_quantum"`
	ExpiresAt       time.Time    `json:"expires_at"` // of the registration
}

// DNS says how the apps' names resolve on this laptop.
type DNS struct {
	// Manager is what was told of them: systemd-resolved, NetworkManager
	// (dnsmasq) or resolv.conf.
	Manager string `json:"manager,omitempty"`
	// Problem is why they do not resolve, in words for the person.
	Problem string `json:"problem,omitempty"`
}

// Proxy says where browsers and programs find the agent.
type Proxy struct {
	Address string `json:"address"` // HTTP proxy and SOCKS5, host:port
	PAC     string `json:"pac"`     // URL of the PAC file
}

// App is an app as this laptop sees it.
type App struct {
	wire.App
	// Local are the loopback ports that lead to it.
	Local []Mapping `json:"local"`
}

// Mapping is one loopback port of an app.
type Mapping struct {
	Port  uint16 `json:"port"`  // the app's own
	Local string `json:"local"` // 127.0.0.1:PORT
}

// Apps is the list form every --json list has.
type Apps struct {
	Items []App `json:"items"`
}

// LoginEvent is one line of a login's stream: first the page, then the end.
type LoginEvent struct {
	URL       string        `json:"url,omitempty"`
	ExpiresAt *time.Time    `json:"expires_at,omitempty"`
	Session   *wire.Session `json:"session,omitempty"`
	Error     *wire.Error   `json:"error,omitempty"`
	// Refused says that Error is the gateway's refusal and not a failure on the way.
	Refused bool `json:"refused,omitempty"`
}
