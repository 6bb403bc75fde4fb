package overlay

import (
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// cutter copies packets of the stack into the tunnel's buffers and cuts a TCP
// segment longer than the MTU into packets on the way: the one time its bytes
// are copied and summed.
type cutter struct {
	packet *stack.PacketBuffer // nil when there is nothing left to copy

	// What of the packet has not been copied: all of it, or the payload alone
	// where ip and tcp are its headers.
	view *buffer.View
	skip int // bytes of view that are done
	left int

	ip, tcp []byte // nil for a packet that leaves as it is
	mss     int    // most payload in one packet
	pseudo  uint16 // sum of TCP's pseudo-header but for the length
	cut     uint32 // payload bytes cut off so far
	cuts    uint16 // packets cut off so far
}

// start begins with p, whose reference it owns until the last copy.
func (c *cutter) start(p *stack.PacketBuffer) {
	views, skip := p.AsViewList()
	*c = cutter{packet: p, view: views.Front(), skip: skip, left: p.Size()}
	if p.GSOOptions.Type == stack.GSONone || !p.GSOOptions.NeedsCsum {
		return
	}
	c.ip, c.tcp = p.NetworkHeader().Slice(), p.TransportHeader().Slice()
	addresses := c.ip[12:20]
	if c.ip[0]>>4 == 6 {
		addresses = c.ip[8:40]
	}
	c.pseudo = checksum.Checksum(addresses, uint16(header.TCPProtocolNumber))
	c.advance(nil, len(c.ip)+len(c.tcp))
	if c.mss = int(p.GSOOptions.MSS); c.mss == 0 {
		c.mss = c.left
	}
}

// advance takes n bytes, into to unless that is nil.
func (c *cutter) advance(to []byte, n int) {
	c.left -= n
	for n > 0 {
		b := c.view.AsSlice()[c.skip:]
		b = b[:min(n, len(b))]
		if to != nil {
			to = to[copy(to, b):]
		}
		n -= len(b)
		if c.skip += len(b); c.skip == c.view.Size() {
			c.view, c.skip = c.view.Next(), 0
		}
	}
}

// next writes the next packet to the front of to and returns its length; 0
// says that to is too short for it and that it is lost. After the last one it
// lets go of what start was given.
func (c *cutter) next(to []byte) int {
	n := c.left
	if c.tcp != nil {
		n = len(c.ip) + len(c.tcp) + min(c.mss, c.left)
	}
	switch {
	case n > len(to):
		n, c.left = 0, 0
	case c.tcp != nil:
		c.nextCut(to[:n])
	default:
		c.advance(to, n)
	}
	if c.left == 0 {
		c.packet.DecRef()
		*c = cutter{}
	}
	return n
}

func (c *cutter) nextCut(to []byte) {
	ip, tcp := to[:len(c.ip)], to[len(c.ip):]
	copy(ip, c.ip)
	copy(tcp, c.tcp)
	data := tcp[len(c.tcp):]
	c.advance(data, len(data))

	if ip[0]>>4 == 4 {
		h := header.IPv4(ip)
		h.SetTotalLength(uint16(len(to)))
		h.SetID(h.ID() + c.cuts)
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
	} else {
		header.IPv6(ip).SetPayloadLength(uint16(len(to) - header.IPv6MinimumSize))
	}
	t := header.TCP(tcp)
	t.SetSequenceNumber(t.SequenceNumber() + c.cut)
	if c.left > 0 {
		t.SetFlags(uint8(t.Flags() &^ (header.TCPFlagFin | header.TCPFlagPsh)))
	}
	t.SetChecksum(0)
	t.SetChecksum(^checksum.Checksum(tcp, checksum.Combine(c.pseudo, uint16(len(tcp)))))
	c.cut += uint32(len(data))
	c.cuts++
}
