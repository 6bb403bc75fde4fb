package policy

import (
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Protocols of an App.
const (
	ProtocolHTTP = "http"
	ProtocolTCP  = "tcp"
	ProtocolUDP  = "udp"
)

// Visibilities of an App: whether a device that may not use the app learns
// that it exists.
const (
	VisibilityExplain = "explain"
	VisibilityHidden  = "hidden"
)

// What an App says about bytes of a URL that parsers disagree about.
const (
	URLRefuse = "refuse"
	URLKeep   = "keep"
)

// DSCP of an App: whether its calls are told to the network on the way.
const (
	DSCPAuto = "auto"
	DSCPOff  = "off"
)

// Durability of an App: what of an allowing record is certain before its
// upstream is asked.
const (
	DurabilityKill   = "kill"   // it survives the gateway's death
	DurabilityStrict = "strict" // it survives the machine's
)

// App is one protected upstream, as a file of the catalogue names it. Every
// App of a Revision is valid and has its defaults filled in; do not change it.
type App struct {
	// Name is a DNS label, unique in the catalogue.
	Name string `json:"name"`
	// Title is what people read; the Name if the file gives none.
	Title string `json:"title"`
	// Protocol is http, tcp or udp.
	Protocol string `json:"protocol"`
	// Hosts are lower-case DNS names, each of one app only. http has at least one.
	Hosts []string `json:"hosts"`
	// Upstream is http(s)://host[:port] for http, host[:port] otherwise.
	Upstream string `json:"upstream"`
	// UpstreamCAFile is the absolute path of PEM certificates that an https
	// upstream is checked against instead of the system's; may be empty.
	UpstreamCAFile string `json:"upstream_ca_file"`
	// UpstreamCertFile and UpstreamKeyFile are the absolute paths, in PEM, of the
	// client certificate that the gateway shows an https upstream; both are empty
	// when it shows none.
	UpstreamCertFile string `json:"upstream_cert_file"`
	UpstreamKeyFile  string `json:"upstream_key_file"`
	// Ports are those of the app's virtual address: 443 and 80 for http.
	Ports []uint16 `json:"ports"`
	// Allow holds otherwise forbidden destinations (loopback, link-local, ...)
	// that this app may dial.
	Allow []netip.Prefix `json:"allow"`
	// Visibility is explain or hidden.
	Visibility string `json:"visibility"`
	// DSCP of a udp app is auto or off: whether packets of what looks like a
	// call are marked as voice. It is empty for other protocols.
	DSCP string `json:"dscp"`
	// Durability is kill or strict: whether the record of what is allowed is
	// only with the kernel or on the disk before the upstream is asked.
	Durability string `json:"durability"`
	// WebSocket says whether HTTP requests may upgrade to a WebSocket.
	WebSocket bool `json:"websocket"`
	// Origins are allowed besides the https origins of Hosts.
	Origins []string `json:"origins"`
	// CrossSite are patterns (see [MatchPath]) of the paths that accept
	// cross-site requests besides top-level GET navigation.
	CrossSite []string `json:"cross_site"`
	// EncodedSlash and PathParameters of an http app are refuse or keep: whether
	// a path may hold %2F or ";". Either is then a part of its segment; see
	// [Request]. They are empty for other protocols.
	EncodedSlash   string `json:"encoded_slash"`
	PathParameters string `json:"path_parameters"`
	// OnLoss says what becomes of what is open when it is allowed no more.
	OnLoss OnLoss `json:"on_loss"`
	// Access grants: any matching Rule allows, no Rule allows nobody.
	Access []Rule `json:"access"`
}

// OnLoss is what becomes of an app's open flows when a soft [Reason] takes the
// permission away: the zero value cuts them.
type OnLoss struct {
	// Drain is how long what is open may go on, in whole seconds; 0 cuts.
	Drain time.Duration
}

// MaxDrain bounds how long what is open may go on without permission.
const MaxDrain = 30 * time.Minute

// String returns "cut", or "drain 15m".
func (o OnLoss) String() string {
	if o.Drain == 0 {
		return "cut"
	}
	s := o.Drain.String()
	if s, whole := strings.CutSuffix(s, "m0s"); whole {
		return "drain " + s + "m"
	}
	return "drain " + s
}

// MarshalText is String: what Rego and lists see.
func (o OnLoss) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// Rule is one grant. All of its conditions must hold; a condition that is not
// written always holds, but for who: a Rule names Groups, Subjects or Anyone.
type Rule struct {
	// Anyone means everyone who is logged in.
	Anyone   bool     `json:"anyone"`
	Groups   []string `json:"groups"`
	Subjects []string `json:"subjects"` // "ISSUER#SUB"
	// Posture maps signal names to the state they must have: "pass".
	Posture map[string]string `json:"posture"`
	// Countries (ISO 3166-1 alpha-2) are the only ones, NotCountries the ones
	// that are refused; a Rule has at most one of the two.
	Countries    []string `json:"countries"`
	NotCountries []string `json:"not_countries"`
	Hours        *Hours   `json:"hours"`
	Methods      []string `json:"methods"` // exact, http only
	Paths        []string `json:"paths"`   // patterns (see [MatchPath]), http only
}

// Hours is a span of every week, on the wall clock of Zone. When From is later
// than To the span crosses midnight and belongs to the day it begins on.
type Hours struct {
	Days []string `json:"days"` // mon ... sun, in the week's order
	From string   `json:"from"` // HH:MM, inclusive
	To   string   `json:"to"`   // HH:MM, exclusive; 24:00 is the day's end
	Zone string   `json:"zone"` // IANA name
}

// UpstreamFor returns the host:port to dial for a connection to port of the
// app's virtual address.
func (a App) UpstreamFor(port uint16) string {
	host := a.Upstream
	if a.Protocol == ProtocolHTTP {
		u, err := url.Parse(a.Upstream)
		if err != nil {
			return ""
		}
		if u.Port() != "" {
			return u.Host
		}
		port = 80
		if u.Scheme == "https" {
			port = 443
		}
		return net.JoinHostPort(u.Hostname(), strconv.Itoa(int(port)))
	}
	if h, p, err := net.SplitHostPort(host); err == nil {
		return net.JoinHostPort(h, p)
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(int(port)))
}

// MatchPath says whether a canonical request path matches a pattern of the
// catalogue. `/x` matches exactly that, a segment `*` any one segment that is
// not empty, and a last segment `**` whatever follows, also nothing: `/x/**`
// matches `/x/` and `/x/a/b`, not `/x`. The shipped Rego matches alike.
func MatchPath(pattern, path string) bool {
	for {
		if pattern == "**" {
			return true
		}
		p, patternRest, patternMore := strings.Cut(pattern, "/")
		s, pathRest, pathMore := strings.Cut(path, "/")
		if patternMore != pathMore || p != s && (p != "*" || s == "") {
			return false
		}
		if !patternMore {
			return true
		}
		pattern, path = patternRest, pathRest
	}
}
