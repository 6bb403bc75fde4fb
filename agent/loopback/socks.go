package loopback

import (
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"time"
)

// Replies of RFC 1928 section 6.
const (
	socksOK           = 0x00
	socksFailure      = 0x01
	socksNotAllowed   = 0x02
	socksUnreachable  = 0x04
	socksRefused      = 0x05
	socksCommand      = 0x07
	socksAddressType  = 0x08
	socksNoAcceptable = 0xff
)

// socksError is a request that gets that reply.
type socksError byte

func (e socksError) Error() string { return "SOCKS request refused" }

// Commands of RFC 1928 section 4.
const (
	socksConnect   = 1
	socksAssociate = 3
)

// socksRequest is what a client asks for.
type socksRequest struct {
	command byte
	host    string
	port    uint16
}

// serveSOCKS speaks RFC 1928: CONNECT and UDP ASSOCIATE without authentication.
// The user is known by the socket, a password would add nothing.
func (s *Server) serveSOCKS(p *peer) {
	p.SetDeadline(time.Now().Add(headerTimeout))
	req, err := readSOCKS(p)
	var reply socksError
	if errors.As(err, &reply) {
		writeSOCKS(p, byte(reply))
		return
	}
	if err != nil {
		return
	}
	if req.command == socksAssociate {
		s.serveAssociate(p, req.port)
		return
	}
	t, _ := s.routes.Load().find(req.host, req.port)
	if t == nil {
		writeSOCKS(p, socksNotAllowed)
		return
	}
	p.SetDeadline(time.Time{})
	remote, err := s.dial(p.ctx, t)
	if err != nil {
		s.log.Info("app not reached", "app", t.key.app, "err", err)
		code := byte(socksRefused)
		if timedOut(err) {
			code = socksUnreachable
		}
		writeSOCKS(p, code)
		return
	}
	if writeSOCKS(p, socksOK) != nil {
		remote.Close()
		return
	}
	p.screen = screenName(t)
	s.relay(p, t, remote)
}

// readSOCKS reads greeting and request, answering the greeting in between.
func readSOCKS(rw io.ReadWriter) (req socksRequest, err error) {
	var head [4]byte
	if _, err := io.ReadFull(rw, head[:2]); err != nil {
		return socksRequest{}, err
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(rw, methods); err != nil {
		return socksRequest{}, err
	}
	if head[0] != 5 {
		return socksRequest{}, errors.New("not SOCKS5")
	}
	method := byte(socksNoAcceptable)
	for _, m := range methods {
		if m == 0 { // no authentication
			method = 0
		}
	}
	if _, err := rw.Write([]byte{5, method}); err != nil {
		return socksRequest{}, err
	}
	if method != 0 {
		return socksRequest{}, errors.New("no acceptable authentication method")
	}

	if _, err := io.ReadFull(rw, head[:]); err != nil {
		return socksRequest{}, err
	}
	if head[0] != 5 || head[2] != 0 {
		return socksRequest{}, socksError(socksFailure)
	}
	size := 0
	switch head[3] {
	case 1:
		size = 4
	case 4:
		size = 16
	case 3:
		var n [1]byte
		if _, err := io.ReadFull(rw, n[:]); err != nil {
			return socksRequest{}, err
		}
		size = int(n[0])
	default:
		return socksRequest{}, socksError(socksAddressType)
	}
	rest := make([]byte, size+2)
	if _, err := io.ReadFull(rw, rest); err != nil {
		return socksRequest{}, err
	}
	if head[1] != socksConnect && head[1] != socksAssociate { // BIND
		return socksRequest{}, socksError(socksCommand)
	}
	return socksRequest{head[1], socksHost(head[3], rest[:size]), binary.BigEndian.Uint16(rest[size:])}, nil
}

// socksHost writes an address of RFC 1928 section 5 as a host.
func socksHost(kind byte, b []byte) string {
	if kind == 3 {
		return string(b)
	}
	ip, _ := netip.AddrFromSlice(b)
	return ip.Unmap().String()
}

// writeSOCKS sends a reply to CONNECT or a refusal. The bound address is left
// open: it belongs to the tunnel and means nothing to a program.
func writeSOCKS(w io.Writer, reply byte) error {
	_, err := w.Write([]byte{5, reply, 0, 1, 0, 0, 0, 0, 0, 0})
	return err
}
