package policy

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// The checks below say what was wanted of a text, or "".

func checkHost(s string) string {
	labels := strings.Split(s, ".")
	bad := len(s) > 253 || numericRE.MatchString(labels[len(labels)-1])
	for _, l := range labels {
		bad = bad || !labelRE.MatchString(l)
	}
	switch {
	case s == gatewayHost:
		return "a name other than the gateway's own"
	case bad:
		return "a lower-case host name without scheme, port or wildcard, such as crm.example.com"
	}
	return ""
}

// checkDial checks a host that is only dialled: a name or an address.
func checkDial(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return !strings.Contains(host, "%")
	}
	return checkHost(strings.ToLower(host)) == ""
}

func checkPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0 && strconv.FormatUint(n, 10) == port
}

func checkURL(s string) string {
	const wanted = "http://host[:port] or https://host[:port] without a path"
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Scheme+"://"+u.Host != s || !checkDial(u.Hostname()) {
		return wanted
	}
	if rest := strings.TrimPrefix(u.Host, hostPart(u)); rest != "" && !checkPort(strings.TrimPrefix(rest, ":")) {
		return wanted
	}
	return ""
}

// hostPart is u's host without a port, in brackets if it was.
func hostPart(u *url.URL) string {
	if strings.HasPrefix(u.Host, "[") {
		return "[" + u.Hostname() + "]"
	}
	return u.Hostname()
}

func checkHostPort(s string) string {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = s, "1"
		if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
			host = s[1 : len(s)-1]
		}
	}
	if !checkDial(host) || !checkPort(port) {
		return "host:port or host, without a scheme"
	}
	return ""
}

func checkPrefix(s string) string {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			return fmt.Sprintf("a prefix, here %s/%d", s, a.BitLen())
		}
		return "a prefix of addresses, such as 127.0.0.1/32"
	}
	if p.Addr().Is4In6() {
		return "an IPv4 prefix written as such"
	}
	if p != p.Masked() {
		return fmt.Sprintf("a prefix whose host bits are zero, here %s", p.Masked())
	}
	return ""
}

func checkOrigin(s string) string {
	const wanted = "an origin https://host[:port] in lower case, without a path or the scheme's own port"
	u, err := url.Parse(s)
	switch {
	case checkURL(s) != "", err != nil, strings.ToLower(s) != s:
		return wanted
	case u.Scheme == "https" && u.Port() == "443", u.Scheme == "http" && u.Port() == "80":
		return wanted // browsers leave it out, so it would never match
	}
	return ""
}

// patternOf returns the check of an app's path patterns. Where a path may hold
// %2F a pattern may name it.
func patternOf(app *App) func(string) string {
	if app.EncodedSlash != URLKeep {
		return checkPattern
	}
	return func(s string) string { return checkPattern(strings.ReplaceAll(s, "%2F", "-")) }
}

func checkPattern(s string) string {
	const wanted = "a path such as /x, /x/* (one segment) or /x/** (the rest)"
	if !strings.HasPrefix(s, "/") || strings.ContainsAny(s, "?#\\%") {
		return wanted
	}
	segments := strings.Split(s[1:], "/")
	for i, segment := range segments {
		switch {
		case segment == "*", segment == "**" && i == len(segments)-1, segment == "" && i == len(segments)-1:
		case segment == "", segment == ".", segment == "..", strings.Contains(segment, "*"):
			return wanted
		}
	}
	return ""
}
