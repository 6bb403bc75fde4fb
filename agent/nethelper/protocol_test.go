package nethelper

import (
	"bytes"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestRequestsGoThereAndBack(t *testing.T) {
	many := make([]netip.Addr, maxRoutes)
	for i := range many {
		many[i] = netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)})
	}
	for _, req := range []any{
		openRequest{"portvakt0", 1280, addrs("100.96.0.9", "fd70::9")},
		openRequest{"portvakt0", 1280, nil},
		setRequest{1000, addrs("100.96.1.1")},
		setRequest{NoUser, nil},
		setRequest{0, many},
		dnsRequest{addrs("100.96.0.1", "fd70::1"), []string{"crm.example.com", "wiki.example.com"}},
		dnsRequest{},
		closeRequest{},
	} {
		msg := encode(req)
		if len(msg) > maxMessage {
			t.Errorf("%T of %d bytes does not fit a message", req, len(msg))
		}
		got, err := decode(msg)
		if err != nil || !reflect.DeepEqual(got, req) {
			t.Errorf("%+v became %+v, %v", req, got, err)
		}
	}
	for text, err := range map[string]error{"resolved": nil, "": errors.New("no")} {
		got, gotErr := decodeAnswer(encodeAnswer(text, err))
		if got != text || (err == nil) != (gotErr == nil) {
			t.Errorf("answer %q %v became %q %v", text, err, got, gotErr)
		}
	}
}

func TestDamagedRequests(t *testing.T) {
	open := encode(openRequest{"portvakt0", 1280, addrs("100.96.0.9")})
	set := encode(setRequest{1000, addrs("100.96.1.1")})
	change := func(msg []byte, at int, b byte) []byte {
		msg = bytes.Clone(msg)
		msg[at] = b
		return msg
	}
	for name, msg := range map[string][]byte{
		"empty":                    {},
		"unknown kind":             {9},
		"kind 0":                   {0},
		"close with a tail":        {kindClose, 0},
		"open cut":                 open[:len(open)-1],
		"open with a tail":         append(bytes.Clone(open), 0),
		"open of another version":  change(open, 1, 2),
		"open with a long name":    change(open, 2, 200),
		"set cut in the user":      set[:3],
		"set with more than given": change(set, 6, 2),
		"set of too many":          change(set, 5, 0xff),
		"address of 5 bytes":       change(set, 7, 5),
		"address of 0 bytes":       change(set, 7, 0),
		"dns of too many servers":  {kindDNS, 200},
		"dns of too many names":    {kindDNS, 0, 0xff, 0xff},
	} {
		if req, err := decode(msg); err == nil {
			t.Errorf("%s was read as %+v", name, req)
		}
	}
}

// FuzzDecode: what is accepted is within the bounds and has one form.
func FuzzDecode(f *testing.F) {
	f.Add(encode(openRequest{"portvakt0", 1280, addrs("100.96.0.9", "fd70::9")}))
	f.Add(encode(setRequest{1000, addrs("100.96.1.1", "fd70::1:1")}))
	f.Add(encode(dnsRequest{addrs("100.96.0.1"), []string{"crm.example.com"}}))
	f.Add(encode(closeRequest{}))
	f.Fuzz(func(t *testing.T, msg []byte) {
		req, err := decode(msg)
		if err != nil {
			return
		}
		if again := encode(req); !bytes.Equal(again, msg) {
			t.Errorf("%x is also %x", msg, again)
		}
		if s, ok := req.(setRequest); ok && len(s.routes) > maxRoutes {
			t.Errorf("%d routes", len(s.routes))
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	f.Add(encodeAnswer("portvakt0", nil))
	f.Add(encodeAnswer("", errors.New("no")))
	f.Fuzz(func(t *testing.T, msg []byte) {
		if text, err := decodeAnswer(msg); err == nil && !bytes.Equal(encodeAnswer(text, nil), msg) {
			t.Errorf("%x was read as %q", msg, text)
		}
	})
}

func TestNames(t *testing.T) {
	for name, good := range map[string]bool{
		"portvakt0": true, "portvakt999": true, "portvakt": false, "portvakt1000": false, "portvaktx": false,
		"eth0": false, "": false, "portvakt0/": false, "portvakt 1": false, "portvakt-1": false,
	} {
		if err := CheckName(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestHosts(t *testing.T) {
	all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	for _, c := range []struct {
		addr  string
		pools []netip.Prefix
		good  bool
	}{
		{"100.96.1.1", DefaultPools(), true},
		{"fd70:7674:766b::5", DefaultPools(), true},
		{"8.8.8.8", DefaultPools(), false},
		{"192.168.1.1", DefaultPools(), false},
		{"2001:db8::1", DefaultPools(), false},
		{"fe80::1", all, false},
		{"169.254.169.254", all, false},
		{"127.0.0.1", all, false},
		{"::1", all, false},
		{"0.0.0.0", all, false},
		{"0.1.2.3", all, false},
		{"::", all, false},
		{"224.0.0.1", all, false},
		{"ff02::1", all, false},
		{"255.255.255.255", all, false},
		{"::ffff:100.96.1.1", all, false},
		{"fd00::1%eth0", all, false},
	} {
		if err := checkHost(netip.MustParseAddr(c.addr), c.pools); (err == nil) != c.good {
			t.Errorf("%s: %v", c.addr, err)
		}
	}
	if checkHost(netip.Addr{}, all) == nil {
		t.Error("no address is an address")
	}
}

func TestPools(t *testing.T) {
	for text, good := range map[string]bool{
		"100.96.0.0/16": true, "fd00::/8": true, "10.0.0.0/8": true,
		"0.0.0.0/0": false, "::/0": false, "128.0.0.0/1": false, "100.96.0.1/16": false, "224.0.0.0/8": false,
		"127.0.0.0/8": false, "169.254.0.0/16": false, "::ffff:0:0/96": false,
	} {
		if err := checkPools([]netip.Prefix{netip.MustParsePrefix(text)}); (err == nil) != good {
			t.Errorf("%s: %v", text, err)
		}
	}
	if checkPools(nil) == nil || checkPools(DefaultPools()) != nil {
		t.Error("no pools or the default ones are judged wrongly")
	}
}

func TestDomains(t *testing.T) {
	for name, good := range map[string]bool{
		"crm.example.com": true, "a.b": true, "_sip._tcp.example.com": true,
		"localhost": false, "localhost.localdomain": false, "crm.localhost": false, "in-addr.arpa": false,
		"1.168.192.in-addr.arpa": false, "home.arpa": false, "co.uk": false, "github.io": false, "acme.github.io": true,
		"acme.co.uk": true, "crm.corp": true,
		"": false, "com": false, ".": false, "crm.example.com.": false, ".example.com": false, "a..b": false,
		"CRM.example.com": false, "crm example.com": false, "crm.example.com\nnameserver 1.2.3.4": false,
		"~crm.example.com": false, "-a.example.com": false, "*.example.com": false, "crm.exämple.com": false,
		strings.Repeat("a", 64) + ".com": false, strings.Repeat("a.", 126) + "com": false,
	} {
		if err := checkDomain(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestBoundDomains(t *testing.T) {
	bounds := []string{"corp", "example.com"}
	for name, good := range map[string]bool{
		"example.com": true, "crm.example.com": true, "a.b.corp": true,
		"badexample.com": false, "example.com.evil.net": false, "com": false, "google.com": false,
	} {
		if err := checkWithin(name, bounds); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
		if err := checkWithin(name, nil); err != nil {
			t.Errorf("%q without bounds: %v", name, err)
		}
	}
}
