// Package nethelper is the privileged half of the agent's TUN mode: a small
// root process that owns the interface, its addresses, the routes and the
// split DNS, and the client with which the agent asks it. The agent itself
// stays an ordinary user: it gets the interface's file descriptor and speaks
// WireGuard over it.
//
// The helper reads nothing from the network. It listens on a Unix socket whose
// caller the kernel names, serves one agent at a time, and understands four
// messages of a fixed form. The form has no prefix lengths and no interface
// other than its own: a route can only be a host route, into the tunnel, to an
// address of the configured pools. Whatever ends the agent's connection, also
// kill -9, makes the helper undo everything.
//
// # Messages
//
// One datagram (SOCK_SEQPACKET) is one request, and each request has one
// answer. Integers are big-endian; an address is its length in bytes (4 or 16)
// and those bytes.
//
//	open   1 version(1) name(len8) mtu(16) count(8) addresses
//	set    2 user(32) count(16) addresses
//	dns    3 count(8) addresses count(16) domains(len8 each)
//	close  4
//	answer 0 text | 1 text of the refusal
//
// The answer to open carries the TUN's descriptor and its text is the
// interface's name; the text of the answer to dns is the DNS manager in use and,
// on a second line, why names were left out.
package nethelper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// DefaultSocket is where the helper listens unless it is told otherwise.
const DefaultSocket = "/run/portvakt/net.sock"

// NoUser in [Network.Set] lets nobody but the agent use the tunnel.
const NoUser = ^uint32(0)

// DefaultPools hold every address a gateway gives out unless its operator
// chose others: shared address space (RFC 6598) and unique local addresses.
func DefaultPools() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd00::/8")}
}

// Bounds of one message.
const (
	version      = 1
	maxName      = 15 // IFNAMSIZ less its zero byte
	maxOwn       = 4
	maxRoutes    = 4096
	maxServers   = 4
	maxDomains   = 1024
	maxDomain    = 253
	maxText      = 512
	minMTU       = 576
	maxMTU       = 9000
	maxMessage   = 8 + maxRoutes*17
	kindOpen     = 1
	kindSet      = 2
	kindDNS      = 3
	kindClose    = 4
	statusDone   = 0
	statusFailed = 1
)

// openRequest asks for the interface.
type openRequest struct {
	name  string
	mtu   int
	addrs []netip.Addr // the device's own
}

// setRequest replaces the user and the routes.
type setRequest struct {
	user   uint32
	routes []netip.Addr
}

// dnsRequest replaces the split DNS; no servers means none.
type dnsRequest struct {
	servers []netip.Addr
	domains []string // lower case, without a final dot
}

type closeRequest struct{}

var errMessage = errors.New("not a message of this protocol")

// encode writes a request.
func encode(req any) []byte {
	switch r := req.(type) {
	case openRequest:
		b := appendText([]byte{kindOpen, version}, r.name)
		b = binary.BigEndian.AppendUint16(b, uint16(r.mtu))
		return appendAddrs(append(b, byte(len(r.addrs))), r.addrs)
	case setRequest:
		b := binary.BigEndian.AppendUint32([]byte{kindSet}, r.user)
		b = binary.BigEndian.AppendUint16(b, uint16(len(r.routes)))
		return appendAddrs(b, r.routes)
	case dnsRequest:
		b := appendAddrs([]byte{kindDNS, byte(len(r.servers))}, r.servers)
		b = binary.BigEndian.AppendUint16(b, uint16(len(r.domains)))
		for _, d := range r.domains {
			b = appendText(b, d)
		}
		return b
	}
	return []byte{kindClose}
}

// decode reads a request: a whole one of the form above and within the bounds,
// or an error. What an accepted request asks for is judged by its handler.
func decode(msg []byte) (any, error) {
	r := reader{msg}
	var req any
	switch kind := r.byte(); kind {
	case kindOpen:
		if v := r.byte(); v != version {
			return nil, fmt.Errorf("version %d of the protocol is not spoken here; agent and helper must be of one version", v)
		}
		o := openRequest{name: r.text(maxName), mtu: r.uint16()}
		o.addrs = r.addrs(int(r.byte()), maxOwn)
		req = o
	case kindSet:
		s := setRequest{user: r.uint32()}
		s.routes = r.addrs(r.uint16(), maxRoutes)
		req = s
	case kindDNS:
		d := dnsRequest{servers: r.addrs(int(r.byte()), maxServers)}
		d.domains = r.domains(r.uint16())
		req = d
	case kindClose:
		req = closeRequest{}
	}
	if req == nil || r.bad() || len(r.rest) != 0 {
		return nil, errMessage
	}
	return req, nil
}

// decodeAnswer reads an answer.
func decodeAnswer(msg []byte) (text string, err error) {
	if len(msg) == 0 || len(msg) > 1+maxText || msg[0] > statusFailed {
		return "", errMessage
	}
	text = string(msg[1:])
	if msg[0] == statusFailed {
		return "", errors.New(text)
	}
	return text, nil
}

func encodeAnswer(text string, err error) []byte {
	status := byte(statusDone)
	if err != nil {
		status, text = statusFailed, err.Error()
	}
	return append([]byte{status}, text[:min(len(text), maxText)]...)
}

func appendText(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

func appendAddrs(b []byte, addrs []netip.Addr) []byte {
	for _, a := range addrs {
		b = append(b, byte(a.BitLen()/8))
		b = append(b, a.AsSlice()...)
	}
	return b
}

// reader takes a message apart; once it has failed its rest is nil and
// everything it returns is zero.
type reader struct{ rest []byte }

func (r *reader) bad() bool { return r.rest == nil }

func (r *reader) take(n int) []byte {
	if len(r.rest) < n {
		r.rest = nil
		return make([]byte, n)
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) byte() byte     { return r.take(1)[0] }
func (r *reader) uint16() int    { return int(binary.BigEndian.Uint16(r.take(2))) }
func (r *reader) uint32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }

func (r *reader) text(most int) string {
	n := int(r.byte())
	if n > most {
		r.rest = nil
		return ""
	}
	return string(r.take(n))
}

func (r *reader) addrs(n, most int) []netip.Addr {
	if n > most {
		r.rest = nil
		return nil
	}
	var out []netip.Addr
	for range n {
		size := int(r.byte())
		if size != 4 && size != 16 {
			r.rest = nil
		}
		if r.bad() {
			return nil
		}
		a, _ := netip.AddrFromSlice(r.take(size))
		out = append(out, a)
	}
	return out
}

func (r *reader) domains(n int) []string {
	if n > maxDomains {
		r.rest = nil
		return nil
	}
	var out []string
	for range n {
		d := r.text(maxDomain)
		if r.bad() {
			return nil
		}
		out = append(out, d)
	}
	return out
}

// CheckName refuses every interface but the agent's own kind.
func CheckName(name string) error {
	number, ok := strings.CutPrefix(name, "portvakt")
	if !ok || len(number) < 1 || len(number) > 3 || strings.Trim(number, "0123456789") != "" {
		return fmt.Errorf("the interface must be called portvakt0 to portvakt999, not %q", name)
	}
	return nil
}

// checkHost refuses what can never be an overlay's host address, whatever the
// pools say.
func checkHost(a netip.Addr, pools []netip.Prefix) error {
	switch {
	case !a.IsValid(), a.Is4In6(), a.Zone() != "", a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(),
		a.IsLinkLocalUnicast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}), a.Is4() && a.As4()[0] == 0:
		return fmt.Errorf("%v is no address of an app", a)
	}
	for _, p := range pools {
		if p.Contains(a) {
			return nil
		}
	}
	return fmt.Errorf("%v is outside the pools %v; the helper's --pool names the gateway's (tunnel.ipv4 and tunnel.ipv6)", a, pools)
}

// checkDomain takes the names of apps only, in lower case: whatever is below a
// name goes to the gateway with it, so none under which the public registers
// names, and none that a laptop has for itself or for its own network.
func checkDomain(d string) error {
	if err := checkForm(d); err != nil {
		return err
	}
	top := d[strings.LastIndexByte(d, '.')+1:]
	if top == d || slices.Contains([]string{"arpa", "localhost", "localdomain"}, top) {
		return fmt.Errorf("%q is no host name of an app", d)
	}
	if suffix, _ := publicsuffix.PublicSuffix(d); suffix == d {
		return fmt.Errorf("%q is no host name of an app: others register names below it", d)
	}
	return nil
}

// sift keeps the domains that pass check and says in words why the others are
// left out, or "" when there are none.
func sift(domains []string, check func(string) error) (good []string, left string) {
	others := -1
	for _, d := range domains {
		err := check(d)
		if err == nil {
			good = append(good, d)
			continue
		}
		if others++; others == 0 {
			left = err.Error()
		}
	}
	if others > 0 {
		left += fmt.Sprintf(" (and %d more)", others)
	}
	return good, left
}

// joined puts reasons together.
func joined(left ...string) string {
	return strings.Join(slices.DeleteFunc(left, func(s string) bool { return s == "" }), "; ")
}

// checkWithin refuses names outside of the suffixes; without any all are in.
func checkWithin(d string, suffixes []string) error {
	for _, s := range suffixes {
		if d == s || strings.HasSuffix(d, "."+s) {
			return nil
		}
	}
	if len(suffixes) == 0 {
		return nil
	}
	return fmt.Errorf("%q is outside the domains %q; the helper's --domain names them", d, suffixes)
}

// checkForm takes what reads as a host name in lower case.
func checkForm(d string) error {
	if len(d) > maxDomain {
		return fmt.Errorf("%q is no host name of an app", d)
	}
	for _, l := range strings.Split(d, ".") {
		bad := func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' }
		if l == "" || len(l) > 63 || strings.IndexFunc(l, bad) >= 0 || l[0] == '-' {
			return fmt.Errorf("%q is no host name of an app", d)
		}
	}
	return nil
}

// checkPools refuses pools that would let the tunnel take over more than an
// overlay: they are the operator's word, but a slip there must not be one.
func checkPools(pools []netip.Prefix) error {
	if len(pools) == 0 {
		return errors.New("no pool is named; name at least one with --pool")
	}
	for _, p := range pools {
		least := 8
		if !p.IsValid() || p != p.Masked() || p.Bits() < least || p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() || p.Addr().Is4In6() {
			return fmt.Errorf("pool %v: expected a prefix of /8 or longer of unicast addresses, without host bits", p)
		}
	}
	return nil
}
