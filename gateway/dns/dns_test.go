package dns_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/portvakt/portvakt/gateway/dns"
)

var (
	sales   = netip.MustParseAddr("100.64.0.9")
	support = netip.MustParseAddr("100.64.0.10")
	crm     = [2]netip.Addr{netip.MustParseAddr("100.64.128.1"), netip.MustParseAddr("fd00:64::1:1")}
)

// resolve knows one app, which only the sales laptop may know of.
func resolve(device netip.Addr, host string) ([2]netip.Addr, bool) {
	if device == sales && host == "crm.example.com" {
		return crm, true
	}
	return [2]netip.Addr{}, false
}

func query(t testing.TB, name string, typ dnsmessage.Type, change ...func(*dnsmessage.Message)) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}},
	}
	for _, f := range change {
		f(&m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parse(t testing.TB, b []byte) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatalf("unpacking %x: %v", b, err)
	}
	return m
}

func opt(version uint32) func(*dnsmessage.Message) {
	return func(m *dnsmessage.Message) {
		m.Additionals = append(m.Additionals, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("."), Type: dnsmessage.TypeOPT, Class: 4096, TTL: version << 16},
			Body:   &dnsmessage.OPTResource{Options: []dnsmessage.Option{{Code: 10, Data: []byte("cookies!")}}},
		})
	}
}

func TestAnswers(t *testing.T) {
	const refused, ok = dnsmessage.RCodeRefused, dnsmessage.RCodeSuccess
	record := func(m *dnsmessage.Message) dnsmessage.Resource {
		return dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET},
			Body:   &dnsmessage.AResource{},
		}
	}
	for _, c := range []struct {
		name   string
		device netip.Addr
		query  []byte
		rcode  dnsmessage.RCode
		want   string // address, or "" for none
	}{
		{"A", sales, query(t, "crm.example.com.", dnsmessage.TypeA), ok, "100.64.128.1"},
		{"AAAA", sales, query(t, "crm.example.com.", dnsmessage.TypeAAAA), ok, "fd00:64::1:1"},
		{"mixed case", sales, query(t, "cRm.eXAMple.CoM.", dnsmessage.TypeA), ok, "100.64.128.1"},
		{"with EDNS", sales, query(t, "crm.example.com.", dnsmessage.TypeA, opt(0)), ok, "100.64.128.1"},
		{"HTTPS of a visible app", sales, query(t, "crm.example.com.", 65), ok, ""},
		{"MX of a visible app", sales, query(t, "crm.example.com.", dnsmessage.TypeMX), ok, ""},
		{"hidden", support, query(t, "crm.example.com.", dnsmessage.TypeA), refused, ""},
		{"hidden, HTTPS", support, query(t, "crm.example.com.", 65), refused, ""},
		{"unknown", sales, query(t, "hr.example.com.", dnsmessage.TypeA), refused, ""},
		{"below an app", sales, query(t, "www.crm.example.com.", dnsmessage.TypeA), refused, ""},
		{"above an app", sales, query(t, "example.com.", dnsmessage.TypeA), refused, ""},
		{"the root", sales, query(t, ".", dnsmessage.TypeNS), refused, ""},
		{"ANY", sales, query(t, "crm.example.com.", dnsmessage.TypeALL), refused, ""},
		{"AXFR", sales, query(t, "crm.example.com.", dnsmessage.TypeAXFR), refused, ""},
		{"IXFR", sales, query(t, "crm.example.com.", 251), refused, ""},
		{"type 0", sales, query(t, "crm.example.com.", 0), refused, ""},
		{"OPT as a question", sales, query(t, "crm.example.com.", dnsmessage.TypeOPT), refused, ""},
		{"class CH", sales, query(t, "crm.example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS }), refused, ""},
		{"class ANY", sales, query(t, "crm.example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassANY }), refused, ""},
		{"UPDATE", sales, query(t, "crm.example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.OpCode = 5 }), refused, ""},
		{"no question", sales, query(t, "crm.example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Questions = nil }), refused, ""},
		{"two questions", sales, query(t, "crm.example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Questions = append(m.Questions, m.Questions[0]) }), refused, ""},
		{"an answer in the query", sales, query(t, "crm.example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Answers = append(m.Answers, record(m)) }), refused, ""},
		{"an authority in the query", sales, query(t, "crm.example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Authorities = append(m.Authorities, record(m)) }), refused, ""},
		{"another additional", sales, query(t, "crm.example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Additionals = append(m.Additionals, record(m)) }), refused, ""},
		{"two OPTs", sales, query(t, "crm.example.com.", dnsmessage.TypeA, opt(0), opt(0)), refused, ""},
		{"EDNS version 1", sales, query(t, "crm.example.com.", dnsmessage.TypeA, opt(1)), refused, ""},
		{"cut short", sales, query(t, "crm.example.com.", dnsmessage.TypeA)[:20], refused, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := dns.New(dns.Config{Resolve: resolve})
			b := s.Answer(c.device, c.query, 512)
			if b == nil {
				t.Fatal("no answer")
			}
			m := parse(t, b)
			if m.ID != 4711 || !m.Response || m.RecursionAvailable || m.Truncated || m.RCode != c.rcode || m.Authoritative != (c.rcode == ok) {
				t.Errorf("header %+v", m.Header)
			}
			var got string
			for _, r := range m.Answers {
				if r.Header.TTL != 30 || r.Header.Class != dnsmessage.ClassINET || r.Header.Name != m.Questions[0].Name {
					t.Errorf("record %+v", r.Header)
				}
				switch r := r.Body.(type) {
				case *dnsmessage.AResource:
					got += netip.AddrFrom4(r.A).String()
				case *dnsmessage.AAAAResource:
					got += netip.AddrFrom16(r.AAAA).String()
				}
			}
			if got != c.want {
				t.Errorf("addresses %q, want %q", got, c.want)
			}
		})
	}
}

// The question comes back letter by letter: resolvers vary the case to make
// answers hard to forge.
func TestQuestionIsEchoed(t *testing.T) {
	s := dns.New(dns.Config{Resolve: resolve})
	q := query(t, "cRM.eXaMpLe.cOm.", dnsmessage.TypeA)
	a := s.Answer(sales, q, 512)
	if !bytes.Equal(a[12:len(q)], q[12:]) {
		t.Errorf("asked  %q\nechoed %q", q[12:], a[12:len(q)])
	}
	if len(a) != len(q)+16 {
		t.Errorf("the answer has %d bytes, want the question and 16 more: the name again is two", len(a))
	}
	if m := parse(t, s.Answer(sales, query(t, "crm.example.com.", dnsmessage.TypeA, opt(0)), 512)); len(m.Additionals) != 1 || m.Additionals[0].Header.Class != 1232 {
		t.Errorf("EDNS is answered with %+v", m.Additionals)
	}
}

// From outside, an app that is hidden from the device is no app.
func TestHiddenIsUnknown(t *testing.T) {
	s := dns.New(dns.Config{Resolve: resolve})
	hidden := s.Answer(support, query(t, "crm.example.com.", dnsmessage.TypeA), 512)
	unknown := s.Answer(support, query(t, "hrm.example.com.", dnsmessage.TypeA), 512)
	if !bytes.Equal(bytes.Replace(hidden, []byte("crm"), []byte("hrm"), 1), unknown) {
		t.Errorf("hidden  %x\nunknown %x", hidden, unknown)
	}
}

func TestSilence(t *testing.T) {
	s := dns.New(dns.Config{Resolve: resolve})
	q := query(t, "crm.example.com.", dnsmessage.TypeA)
	for name, b := range map[string][]byte{
		"nothing":        nil,
		"half a header":  q[:11],
		"an answer":      s.Answer(sales, q, 512),
		"its own answer": s.Answer(sales, query(t, "hr.example.com.", dnsmessage.TypeA), 512),
	} {
		if a := s.Answer(sales, b, 512); a != nil {
			t.Errorf("%s is answered: %x", name, a)
		}
	}
	if a := s.Answer(sales, q, len(q)+15); a != nil {
		t.Errorf("%d bytes where %d are allowed", len(a), len(q)+15)
	}
}

// A device that asks without end is answered at a bounded rate, and no other
// device notices.
func TestRate(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := dns.New(dns.Config{Resolve: resolve, Now: func() time.Time { return now }})
	q := query(t, "crm.example.com.", dnsmessage.TypeA)
	ask := func(device netip.Addr, n int) (answers int) {
		for range n {
			if s.Answer(device, q, 512) != nil {
				answers++
			}
		}
		return answers
	}
	if n := ask(sales, 1000); n != 200 {
		t.Errorf("%d of 1,000 at once are answered, want 200", n)
	}
	if n := ask(support, 10); n != 10 {
		t.Errorf("another device gets %d of 10", n)
	}
	now = now.Add(time.Second)
	if n := ask(sales, 1000); n != 50 {
		t.Errorf("%d are answered a second later, want 50", n)
	}
	now = now.Add(-time.Hour) // a clock that is set back gives nothing and takes nothing
	if n := ask(sales, 10); n != 0 {
		t.Errorf("%d are answered after the clock was set back", n)
	}
	// Many devices come and go; who is still at its bound stays there.
	for i := range 5000 {
		ask(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1)
		now = now.Add(10 * time.Microsecond)
	}
	if n := ask(sales, 100); n > 5 {
		t.Errorf("%d are answered after 50 ms of other devices", n)
	}
}

func FuzzAnswer(f *testing.F) {
	for _, c := range [][]byte{
		query(f, "crm.example.com.", dnsmessage.TypeA),
		query(f, "crm.example.com.", dnsmessage.TypeAAAA, opt(0)),
		query(f, "hr.example.com.", dnsmessage.TypeALL, opt(1)),
		query(f, ".", dnsmessage.TypeNS),
		append(binary.BigEndian.AppendUint16(nil, 1), 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1), // a name that points at itself
	} {
		f.Add(c)
	}
	f.Fuzz(func(t *testing.T, q []byte) {
		s := dns.New(dns.Config{Resolve: resolve})
		a := s.Answer(sales, q, 512)
		if a == nil {
			return
		}
		m := parse(t, a)
		switch {
		case !m.Response || !bytes.Equal(a[:2], q[:2]) || len(a) > 512:
			t.Errorf("%x is answered with %x", q, a)
		case len(m.Answers) > 1 || len(m.Answers) == 1 && m.RCode != dnsmessage.RCodeSuccess:
			t.Errorf("%+v", m)
		case len(a) > len(q)+28+11:
			t.Errorf("%d bytes for a question of %d", len(a), len(q))
		}
		if b := s.Answer(support, q, 512); b != nil && parse(t, b).RCode != dnsmessage.RCodeRefused {
			t.Errorf("who sees no app gets %x", b)
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	now := time.Unix(1e9, 0)
	s := dns.New(dns.Config{Resolve: resolve, Now: func() time.Time { now = now.Add(time.Second); return now }})
	for name, device := range map[string]netip.Addr{"visible": sales, "hidden": support} {
		q := query(b, "crm.example.com.", dnsmessage.TypeA)
		b.Run(fmt.Sprint(name), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.Answer(device, q, 512)
			}
		})
	}
}
