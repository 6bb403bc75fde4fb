package e2e

import (
	"fmt"
	"net"
	"net/http"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

// homeAddr is what every name is at home.
const homeAddr = "192.0.2.77"

// homeRouter is the DNS server of a home; over HTTP it tells what it was asked.
type homeRouter struct {
	net.PacketConn

	mu    sync.Mutex
	asked []string // guarded by mu
}

func startHomeDNS(addr string) (*homeRouter, error) {
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		return nil, err
	}
	h := &homeRouter{PacketConn: c}
	go h.serve() // until Close
	return h, nil
}

func (h *homeRouter) serve() {
	buf := make([]byte, 2048)
	for {
		n, from, err := h.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		q := m.Questions[0]
		h.mu.Lock()
		h.asked = append(h.asked, q.Name.String())
		h.mu.Unlock()
		answer := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionDesired: true, RecursionAvailable: true}, Questions: m.Questions}
		if q.Type == dnsmessage.TypeA {
			answer.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1},
				Body:   &dnsmessage.AResource{A: [4]byte(net.ParseIP(homeAddr).To4())},
			}}
		}
		if b, err := answer.Pack(); err == nil {
			_, _ = h.WriteTo(b, from)
		}
	}
}

func (h *homeRouter) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fmt.Fprintln(w, h.asked)
}
