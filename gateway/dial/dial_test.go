package dial

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

func TestDestinations(t *testing.T) {
	forbidden := prefixes("100.64.0.0/10", "fd00:64::/64")
	own := []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}
	for _, c := range []struct {
		addr  string
		allow []netip.Prefix
		ok    bool
	}{
		{"10.1.2.3", nil, true},
		{"192.168.1.1", nil, true},
		{"203.0.113.9", nil, true},
		{"2001:db8::9", nil, true},
		{"fd12::1", nil, true},
		{"127.0.0.1", nil, false},
		{"127.255.0.3", nil, false},
		{"::1", nil, false},
		{"::ffff:127.0.0.1", nil, false},
		{"::ffff:7f00:1", nil, false},
		{"::127.0.0.1", nil, false},
		{"64:ff9b::127.0.0.1", nil, false},
		{"64:ff9b::169.254.169.254", nil, false},
		{"2002:7f00:1::1", nil, false},
		{"64:ff9b:1:7f00:0:1::", nil, false},
		{"2001:0:7f00:1::", nil, false},
		{"2002:a9fe:a9fe::", nil, false},
		{"169.254.169.254", nil, false},
		{"::ffff:169.254.169.254", nil, false},
		{"fe80::1", nil, false},
		{"fe80::1%eth0", nil, false},
		{"fd00:ec2::254", nil, false},
		{"100.100.100.200", nil, false},
		{"168.63.129.16", nil, false},
		{"0.0.0.0", nil, false},
		{"0.1.2.3", nil, false},
		{"::", nil, false},
		{"224.0.0.1", nil, false},
		{"239.1.2.3", nil, false},
		{"ff02::1", nil, false},
		{"255.255.255.255", nil, false},
		{"240.0.0.1", nil, false},
		{"100.64.0.1", nil, false},
		{"fd00:64::1", nil, false},
		{"::ffff:100.64.0.9", nil, false},
		{"192.0.2.7", nil, false},
		{"2001:db8::7", nil, false},
		{"127.0.0.1", prefixes("127.0.0.1/32"), true},
		{"127.0.0.2", prefixes("127.0.0.1/32"), false},
		{"::ffff:127.0.0.1", prefixes("127.0.0.1/32"), true},
		{"::1", prefixes("127.0.0.1/32"), false},
		{"192.0.2.7", prefixes("192.0.2.0/24"), true},
		{"0.0.0.0", prefixes("0.0.0.0/0"), false},
		{"::", prefixes("::/0"), false},
		{"224.0.0.1", prefixes("0.0.0.0/0"), false},
		{"255.255.255.255", prefixes("0.0.0.0/0"), false},
	} {
		err := check(netip.MustParseAddr(c.addr), c.allow, forbidden, func() ([]netip.Addr, error) { return own, nil })
		if (err == nil) != c.ok || (err != nil && !errors.Is(err, ErrForbidden)) {
			t.Errorf("%s with allow %v: %v", c.addr, c.allow, err)
		}
	}
}

// A name is checked by what it resolves to, and no SYN leaves before.
func TestDialChecksAfterResolution(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	_, err = New(time.Second, nil, nil).DialContext(context.Background(), "tcp", net.JoinHostPort("localhost", port))
	if !errors.Is(err, ErrForbidden) {
		t.Fatalf("localhost: %v", err)
	}
	if text := Failed(err); text != "an app's address may not be dialled; name it under the app's allow" {
		t.Error(text)
	}
	if text := Failed(errors.New("connection refused")); text != "an app does not answer" {
		t.Error(text)
	}
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(50 * time.Millisecond))
	if c, err := l.Accept(); err == nil {
		c.Close()
		t.Fatal("a connection arrived")
	}
	c, err := New(time.Second, prefixes("127.0.0.0/8"), nil).DialContext(context.Background(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatalf("allowed: %v", err)
	}
	c.Close()
}

// Datagrams go where a connection would, and nowhere else.
func TestDatagram(t *testing.T) {
	ctx := context.Background()
	for to, want := range map[string]string{"127.0.0.1:5004": "127.0.0.1:5004", "localhost:5004": "127.0.0.1:5004"} {
		if got, err := Datagram(ctx, time.Second, prefixes("127.0.0.0/8"), nil, to); err != nil || got.String() != want {
			t.Errorf("%s: %v, %v", to, got, err)
		}
		if got, err := Datagram(ctx, time.Second, nil, nil, to); !errors.Is(err, ErrForbidden) {
			t.Errorf("%s without allow: %v, %v", to, got, err)
		}
	}
}
