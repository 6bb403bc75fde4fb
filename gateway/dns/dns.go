// Package dns answers the question every device asks the gateway: where is this
// app? It knows the apps a device may know of and nothing else, asks nobody
// and keeps nothing but a rate for each device.
package dns

import (
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// ttl is how long an answer counts, in seconds: about as long as a call
	// waits for an app that moved. App addresses themselves are for life.
	ttl = 30

	// ednsSize is the datagram we take (RFC 6891 section 6.2.3); every answer
	// is smaller than the 512 bytes that need no EDNS.
	ednsSize = 1232

	// Questions of one device: some for each app at once, then a few a second.
	burst     = 200
	perSecond = 50

	// keepRates is how many rates are kept before those that are full again are
	// forgotten; only registered devices have any.
	keepRates = 1024
)

// Config of a Server. Resolve is required.
type Config struct {
	// Resolve returns the addresses, IPv4 and IPv6, of the app with a host name
	// in lower case that the device at an inner address may know of.
	Resolve func(device netip.Addr, host string) ([2]netip.Addr, bool)
	// Now is the clock of the rates; nil means time.Now.
	Now func() time.Time
}

// Server answers questions. Its methods are safe for concurrent use.
type Server struct {
	cfg Config

	mu    sync.Mutex // guards what follows
	rates map[netip.Addr]*rate
	keep  int // how many there may be before the full ones are looked for
}

// rate is a bucket of questions that fills with time.
type rate struct {
	left float64
	at   time.Time
}

// New returns a Server.
func New(cfg Config) *Server {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Server{cfg: cfg, rates: map[netip.Addr]*rate{}, keep: keepRates}
}

// Answer returns the answer to a query of a device, nil where silence is due:
// to what is no query, to a device that asks too much, and where the answer is
// larger than limit bytes.
//
// A name of a visible app has addresses (A, AAAA) and no other records, which
// is said as such, so that a resolver does not give up on the name. Everything
// else is refused: another name, and with it one of an app that is hidden from
// the device; another class or opcode, meta types, more or fewer than one
// question.
func (s *Server) Answer(device netip.Addr, query []byte, limit int) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil || h.Response || !s.admit(device) {
		return nil
	}
	a := answer{header: dnsmessage.Header{
		ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, RCode: dnsmessage.RCodeRefused,
	}}
	if q, edns, ok := question(&p, h); ok {
		a.question, a.edns = &q, edns
		s.resolve(device, q, &a)
	}
	out, err := a.pack()
	if err != nil || len(out) > limit {
		return nil
	}
	return out
}

// question reads a query of the one form that is answered.
func question(p *dnsmessage.Parser, h dnsmessage.Header) (q dnsmessage.Question, edns, ok bool) {
	if h.OpCode != 0 || h.Truncated || h.RCode != dnsmessage.RCodeSuccess {
		return q, false, false
	}
	all, err := p.AllQuestions()
	if err != nil || len(all) != 1 {
		return q, false, false
	}
	if _, err := p.AnswerHeader(); err != dnsmessage.ErrSectionDone {
		return q, false, false
	}
	if _, err := p.AuthorityHeader(); err != dnsmessage.ErrSectionDone {
		return q, false, false
	}
	for {
		r, err := p.AdditionalHeader()
		if err == dnsmessage.ErrSectionDone {
			return all[0], edns, true
		}
		// One OPT record of version 0 (RFC 6891 section 6.1.1), no signatures.
		if err != nil || r.Type != dnsmessage.TypeOPT || edns || r.Name.Length != 1 || r.TTL>>16&0xff != 0 || p.SkipAdditional() != nil {
			return q, false, false
		}
		edns = true
	}
}

func (s *Server) resolve(device netip.Addr, q dnsmessage.Question, a *answer) {
	host := strings.TrimSuffix(lower(q.Name.String()), ".")
	addrs, ok := s.cfg.Resolve(device, host)
	// 128 to 255 ask for more than one type or for a transfer: RFC 6895
	// section 3.1. 0 is reserved, and OPT (41) is none to ask for.
	meta := q.Type == 0 || q.Type == dnsmessage.TypeOPT || q.Type >= 128 && q.Type <= 255
	if !ok || meta || q.Class != dnsmessage.ClassINET {
		return
	}
	a.header.RCode, a.header.Authoritative = dnsmessage.RCodeSuccess, true
	switch q.Type {
	case dnsmessage.TypeA:
		a.addr = addrs[0]
	case dnsmessage.TypeAAAA:
		a.addr = addrs[1]
	}
}

// lower folds ASCII only, as names compare (RFC 4343).
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// answer is what is said to one query.
type answer struct {
	header   dnsmessage.Header
	question *dnsmessage.Question // as asked, also in upper and lower case
	edns     bool
	addr     netip.Addr // not valid: no record
}

func (a *answer) pack() ([]byte, error) {
	b := dnsmessage.NewBuilder(make([]byte, 0, 128), a.header)
	b.EnableCompression()
	if a.question == nil {
		return b.Finish()
	}
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if err := b.Question(*a.question); err != nil {
		return nil, err
	}
	if a.addr.IsValid() {
		if err := b.StartAnswers(); err != nil {
			return nil, err
		}
		h := dnsmessage.ResourceHeader{Name: a.question.Name, Class: dnsmessage.ClassINET, TTL: ttl}
		var err error
		if a.addr.Is4() {
			err = b.AResource(h, dnsmessage.AResource{A: a.addr.As4()})
		} else {
			err = b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: a.addr.As16()})
		}
		if err != nil {
			return nil, err
		}
	}
	if a.edns {
		if err := b.StartAdditionals(); err != nil {
			return nil, err
		}
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(ednsSize, dnsmessage.RCodeSuccess, false); err != nil {
			return nil, err
		}
		if err := b.OPTResource(h, dnsmessage.OPTResource{}); err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

// admit takes one question out of the device's rate.
func (s *Server) admit(device netip.Addr) bool {
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rates[device]
	if r == nil {
		if len(s.rates) >= s.keep {
			s.forget(now)
		}
		r = &rate{left: burst, at: now}
		s.rates[device] = r
	}
	r.fill(now)
	if r.left < 1 {
		return false
	}
	r.left--
	return true
}

func (r *rate) fill(now time.Time) {
	r.left = min(burst, r.left+max(0, now.Sub(r.at).Seconds())*perSecond)
	r.at = now
}

// forget drops the rates that are full again. With many devices that all ask
// it is done ever more rarely. mu is held.
func (s *Server) forget(now time.Time) {
	for a, r := range s.rates {
		if r.fill(now); r.left >= burst {
			delete(s.rates, a)
		}
	}
	s.keep = max(keepRates, 2*len(s.rates))
}
