package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// maxServers bounds the cache of server certificates. There is one set of
// names per app and one for the public port.
const maxServers = 4096

type serverEntry struct {
	cert    *tls.Certificate
	renewAt time.Time
}

// ServerCertificate returns a certificate for names and ips, valid for
// [ServerLife], with the root in its chain. It is cached per set of names and
// replaced at two thirds of its life, so the result is to be asked for at
// every handshake and not kept.
func (ca *CA) ServerCertificate(names []string, ips []net.IP) (*tls.Certificate, error) {
	names, ips, err := normalSet(names, ips)
	if err != nil {
		return nil, fmt.Errorf("issuing a server certificate: %w", err)
	}
	var key strings.Builder
	for _, n := range names {
		key.WriteString(n + "\n")
	}
	for _, ip := range ips {
		key.WriteString(ip.String() + "\n")
	}

	ca.mu.Lock()
	defer ca.mu.Unlock()
	now := ca.now()
	if e := ca.servers[key.String()]; e != nil && now.Before(e.renewAt) && !now.Before(e.cert.Leaf.NotBefore) {
		return e.cert, nil
	}
	cert, err := ca.newServer(names, ips)
	if err != nil {
		return nil, err
	}
	if len(ca.servers) >= maxServers {
		clear(ca.servers)
	}
	life := cert.Leaf.NotAfter.Sub(now)
	ca.servers[key.String()] = &serverEntry{cert: cert, renewAt: now.Add(life * 2 / 3)}
	return cert, nil
}

func (ca *CA) newServer(names []string, ips []net.IP) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a server key: %w", err)
	}
	tmpl := &x509.Certificate{
		DNSNames:    names,
		IPAddresses: ips,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if len(names) > 0 && len(names[0]) <= 64 { // RFC 5280 ub-common-name
		tmpl.Subject = pkix.Name{CommonName: names[0]}
	}
	der, _, err := ca.issue(tmpl, &key.PublicKey, ServerLife)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading back a server certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, ca.root.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

func normalSet(names []string, ips []net.IP) ([]string, []net.IP, error) {
	var ns []string
	for _, n := range names {
		n = strings.ToLower(strings.TrimSuffix(n, "."))
		if !validDNSName(n) {
			return nil, nil, fmt.Errorf("%q is not a host name", n)
		}
		ns = append(ns, n)
	}
	slices.Sort(ns)
	ns = slices.Compact(ns)
	var is []net.IP
	for _, ip := range ips {
		if v4 := ip.To4(); v4 != nil {
			ip = v4
		}
		if len(ip) != net.IPv4len && len(ip) != net.IPv6len {
			return nil, nil, errors.New("an IP address of a strange length")
		}
		is = append(is, ip)
	}
	slices.SortFunc(is, func(a, b net.IP) int { return strings.Compare(a.String(), b.String()) })
	is = slices.CompactFunc(is, net.IP.Equal)
	if len(ns)+len(is) == 0 {
		return nil, nil, errors.New("no name is given")
	}
	return ns, is, nil
}

// validDNSName takes letters, digits, hyphens and underscores in labels of at
// most 63 bytes; no wildcards.
func validDNSName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return true
}
