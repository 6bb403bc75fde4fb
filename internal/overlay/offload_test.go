package overlay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	fin = 1 << iota
	syn
	rst
	psh
	ack
	urg
)

// segment is a TCP packet as the tests say it.
type segment struct {
	v6         bool
	port       uint16 // the source's; the flow's
	seq, ack   uint32
	flags      byte
	window     uint16
	options    []byte
	data       []byte
	tos, ttl   byte
	id         uint16
	mayNotFrag bool
}

// ones is RFC 1071's sum, a word at a time.
func ones(parts ...[]byte) uint16 {
	b := slices.Concat(parts...)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

var (
	source = bytes.Repeat([]byte{100, 64, 0, 20}, 4)
	target = bytes.Repeat([]byte{100, 64, 1, 30}, 4)
)

// marshal writes the packet out; its sums are right.
func (s segment) marshal() []byte {
	tcp := make([]byte, 20+len(s.options), 20+len(s.options)+len(s.data))
	binary.BigEndian.PutUint16(tcp, s.port)
	binary.BigEndian.PutUint16(tcp[2:], 443)
	binary.BigEndian.PutUint32(tcp[4:], s.seq)
	binary.BigEndian.PutUint32(tcp[8:], s.ack)
	tcp[12], tcp[13] = byte(len(tcp)/4)<<4, s.flags
	binary.BigEndian.PutUint16(tcp[14:], s.window)
	copy(tcp[20:], s.options)
	tcp = append(tcp, s.data...)
	if s.v6 {
		ip := make([]byte, 40)
		ip[0], ip[1], ip[6], ip[7] = 0x60|s.tos>>4, s.tos<<4, 6, s.ttl
		binary.BigEndian.PutUint16(ip[4:], uint16(len(tcp)))
		copy(ip[8:], source)
		copy(ip[24:], target)
		binary.BigEndian.PutUint16(tcp[16:], ^ones(ip[8:40], []byte{0, 6, byte(len(tcp) >> 8), byte(len(tcp))}, tcp))
		return append(ip, tcp...)
	}
	ip := make([]byte, 20)
	ip[0], ip[1], ip[8], ip[9] = 0x45, s.tos, s.ttl, 6
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(tcp)))
	binary.BigEndian.PutUint16(ip[4:], s.id)
	if s.mayNotFrag {
		ip[6] = 0x40
	}
	copy(ip[12:16], source)
	copy(ip[16:20], target)
	binary.BigEndian.PutUint16(ip[10:], ^ones(ip))
	binary.BigEndian.PutUint16(tcp[16:], ^ones(ip[12:20], []byte{0, 6, byte(len(tcp) >> 8), byte(len(tcp))}, tcp))
	return append(ip, tcp...)
}

// unmarshal reads a TCP packet back and verifies lengths and, unless it was
// joined, sums.
func unmarshal(b []byte, joined bool) (s segment, err error) {
	var pseudo []byte
	switch b[0] >> 4 {
	case 4:
		if int(binary.BigEndian.Uint16(b[2:])) != len(b) || ones(b[:20]) != 0xffff || b[9] != 6 {
			return s, fmt.Errorf("IPv4 header %x of %d bytes", b[:20], len(b))
		}
		s.tos, s.ttl, s.id, s.mayNotFrag = b[1], b[8], binary.BigEndian.Uint16(b[4:]), b[6] == 0x40
		pseudo, b = b[12:20], b[20:]
	case 6:
		if int(binary.BigEndian.Uint16(b[4:]))+40 != len(b) || b[6] != 6 {
			return s, fmt.Errorf("IPv6 header %x of %d bytes", b[:40], len(b))
		}
		s.v6, s.tos, s.ttl = true, b[0]<<4|b[1]>>4, b[7]
		pseudo, b = b[8:40], b[40:]
	}
	if !joined && ones(pseudo, []byte{0, 6, byte(len(b) >> 8), byte(len(b))}, b) != 0xffff {
		return s, fmt.Errorf("TCP checksum of %x", b)
	}
	s.port = binary.BigEndian.Uint16(b)
	s.seq, s.ack = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
	s.flags, s.window = b[13], binary.BigEndian.Uint16(b[14:])
	offset := int(b[12]>>4) * 4
	s.options, s.data = slices.Clip(b[20:offset]), b[offset:]
	return s, nil
}

// super is the segment as the stack gives it to the link: views of the given
// sizes, the sum of the pseudo-header alone.
func (s segment) super(mss int, views ...int) *stack.PacketBuffer {
	b := s.marshal()
	ip := map[bool]int{false: 20, true: 40}[s.v6]
	var payload buffer.Buffer
	data := s.data
	for _, n := range views {
		n = min(n, len(data))
		if n > 0 {
			_ = payload.Append(buffer.NewViewWithData(data[:n]))
		}
		data = data[n:]
	}
	if len(data) > 0 {
		_ = payload.Append(buffer.NewViewWithData(data))
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: 60 + len(s.options) + 20, Payload: payload})
	copy(p.TransportHeader().Push(20+len(s.options)), b[ip:])
	copy(p.NetworkHeader().Push(ip), b)
	p.NetworkProtocolNumber, p.TransportProtocolNumber = header.IPv4ProtocolNumber, header.TCPProtocolNumber
	p.GSOOptions = stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: uint16(mss)}
	if s.v6 {
		p.NetworkProtocolNumber, p.GSOOptions.Type = header.IPv6ProtocolNumber, stack.GSOTCPv6
	}
	return p
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

var stamps = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}

func TestCut(t *testing.T) {
	base := segment{port: 40000, seq: 0xfffffe00, ack: 77, flags: ack | psh, window: 501, ttl: 64, id: 0xfffe, mayNotFrag: true}
	for _, v6 := range []bool{false, true} {
		for _, tc := range []struct {
			name    string
			data    int
			mss     int
			flags   byte
			options []byte
			views   []int
		}{
			{"nothing", 0, 1228, ack, nil, nil},
			{"one byte", 1, 1228, ack | psh, stamps, nil},
			{"one full", 1228, 1228, ack | psh, stamps, nil},
			{"one more", 1229, 1228, ack | psh, stamps, nil},
			{"odd size", 9999, 1227, ack | psh, nil, nil},
			{"end", 5000, 1228, ack | psh | fin, nil, []int{1, 2, 3, 4000}},
			{"many views", 20000, 1000, ack, stamps, []int{1, 999, 1000, 1, 1, 1, 5000}},
			{"largest", 65535 - 72, 1200, ack | psh, stamps, []int{40000}},
			{"tiny", 300, 1, ack, nil, nil},
			{"no mss", 100, 0, ack, nil, nil},
		} {
			t.Run(fmt.Sprintf("v6=%v %s", v6, tc.name), func(t *testing.T) {
				s := base
				s.v6, s.flags, s.options, s.data = v6, tc.flags, tc.options, pattern(tc.data)
				var c cutter
				c.start(s.super(tc.mss, tc.views...))
				buf := make([]byte, 65536)
				got := 0
				for i := 0; c.packet != nil; i++ {
					n := c.next(buf)
					if n == 0 {
						t.Fatalf("packet %d: nothing", i)
					}
					p, err := unmarshal(buf[:n], false)
					if err != nil {
						t.Fatalf("packet %d: %v", i, err)
					}
					end := got + len(p.data)
					want := s
					want.seq += uint32(got)
					want.data = s.data[got:end]
					if !v6 {
						want.id += uint16(i)
					} else {
						want.id, want.mayNotFrag = 0, false
					}
					if end < len(s.data) {
						want.flags &^= psh | fin
						if len(p.data) != tc.mss {
							t.Errorf("packet %d has %d bytes, want %d", i, len(p.data), tc.mss)
						}
					}
					if fmt.Sprint(p) != fmt.Sprint(want) {
						t.Fatalf("packet %d is\n%v, want\n%v", i, p, want)
					}
					got = end
				}
				if got != len(s.data) {
					t.Errorf("%d bytes, want %d", got, len(s.data))
				}
			})
		}
	}
}

func TestCutIntoTooLittle(t *testing.T) {
	var c cutter
	c.start(segment{data: pattern(3000), flags: ack}.super(1000))
	if n := c.next(make([]byte, 1039)); n != 0 || c.packet != nil {
		t.Errorf("%d bytes, want the segment dropped", n)
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(pattern(100))})
	c.start(p)
	if n := c.next(make([]byte, 99)); n != 0 || c.packet != nil {
		t.Errorf("%d bytes, want the packet dropped", n)
	}
}

// collector is a stack that keeps what it is given.
type collector struct {
	got [][]byte
}

func (c *collector) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, p *stack.PacketBuffer) {
	c.got = append(c.got, p.ToView().ToSlice())
}

func (*collector) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// joined runs packets through arrivals and reads back what the stack gets.
func joined(packets ...[]byte) (got [][]byte, refused int) {
	l, c := newLink(1280), &collector{}
	l.Attach(c)
	a := arrivalsPool.Get().(*arrivals)
	defer arrivalsPool.Put(a)
	for _, p := range packets {
		if len(p) > 0 && !a.add(p) {
			refused++
		}
	}
	a.deliver(l)
	return c.got, refused
}

func first(got [][]byte, _ int) [][]byte { return got }

func TestJoin(t *testing.T) {
	// seg is a full-sized segment, the i-th of its flow.
	seg := func(i int, with ...func(*segment)) segment {
		s := segment{port: 1, seq: uint32(1000 * i), ack: 5, flags: ack, window: 9, ttl: 64, options: stamps, data: pattern(1000), mayNotFrag: true}
		for _, f := range with {
			f(&s)
		}
		return s
	}
	flags := func(f byte) func(*segment) { return func(s *segment) { s.flags = f } }
	size := func(n int) func(*segment) { return func(s *segment) { s.data = pattern(n) } }
	port := func(p uint16) func(*segment) { return func(s *segment) { s.port = p } }
	acks := func(n uint32) func(*segment) { return func(s *segment) { s.ack = n } }
	opts := func(o ...byte) func(*segment) { return func(s *segment) { s.options = o } }
	later := func(s *segment) { s.options = []byte{1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 2} }
	for _, tc := range []struct {
		name string
		in   []segment
		want string // of each packet: port:sequence number+bytes flags
	}{
		{"in a row", []segment{seg(0), seg(1), seg(2, size(10))}, "1:0+2010 10"},
		{"two flows", []segment{seg(0), seg(0, port(2)), seg(1), seg(1, port(2))}, "1:0+2000 10, 2:0+2000 10"},
		{"push ends", []segment{seg(0), seg(1, flags(ack|psh)), seg(2)}, "1:0+2000 18, 1:2000+1000 10"},
		{"push first", []segment{seg(0, flags(ack|psh)), seg(1)}, "1:0+1000 18, 1:1000+1000 10"},
		{"end", []segment{seg(0), seg(1, flags(ack|fin))}, "1:0+1000 10, 1:1000+1000 11"},
		{"reset", []segment{seg(0), seg(1, flags(rst), size(0)), seg(1)}, "1:0+1000 10, 1:1000+0 4, 1:1000+1000 10"},
		{"opening", []segment{seg(0, flags(syn)), seg(0)}, "1:0+1000 2, 1:0+1000 10"},
		{"urgent", []segment{seg(0), seg(1, flags(ack|urg))}, "1:0+1000 10, 1:1000+1000 30"},
		{"congestion echo", []segment{seg(0), seg(1, flags(ack|64)), seg(2)}, "1:0+1000 10, 1:1000+1000 50, 1:2000+1000 10"},
		{"a gap", []segment{seg(0), seg(2), seg(1)}, "1:0+1000 10, 1:2000+1000 10, 1:1000+1000 10"},
		{"twice", []segment{seg(0), seg(0), seg(1)}, "1:0+1000 10, 1:0+2000 10"},
		{"acknowledging more", []segment{seg(0), seg(1, acks(6))}, "1:0+1000 10, 1:1000+1000 10"},
		{"other time", []segment{seg(0), seg(1, later), seg(2, later)}, "1:0+1000 10, 1:1000+2000 10"},
		{"other options", []segment{seg(0), seg(1, opts()), seg(2, opts())}, "1:0+1000 10, 1:1000+2000 10"},
		{"other service", []segment{seg(0), seg(1, func(s *segment) { s.tos = 0xb8 })}, "1:0+1000 10, 1:1000+1000 10"},
		{"other hops", []segment{seg(0), seg(1, func(s *segment) { s.ttl = 63 })}, "1:0+1000 10, 1:1000+1000 10"},
		{"larger ones", []segment{seg(0, size(10)), seg(0, size(1200), func(s *segment) { s.seq = 10 })}, "1:0+1210 10"},
		{"acknowledgements", []segment{seg(0, size(0)), seg(0, size(0), acks(6)), seg(0, size(0), acks(9))}, "1:0+0 10 ack 9"},
		{"equal acknowledgements", []segment{seg(0, size(0)), seg(0, size(0)), seg(0, size(0))}, "1:0+0 10 ack 5, 1:0+0 10 ack 5, 1:0+0 10 ack 5"},
		{"an old acknowledgement", []segment{seg(0, size(0)), seg(0, size(0), acks(4))}, "1:0+0 10 ack 5, 1:0+0 10 ack 4"},
		{"selective acknowledgements", []segment{seg(0, size(0), acks(6), opts(1, 1, 5, 10, 0, 0, 0, 9, 0, 0, 0, 10)), seg(0, size(0), acks(7), opts(1, 1, 5, 10, 0, 0, 0, 8, 0, 0, 0, 10))}, "1:0+0 10 ack 6, 1:0+0 10 ack 7"},
		{"acknowledgement, then data", []segment{seg(0, size(0)), seg(0), seg(1)}, "1:0+0 10 ack 5, 1:0+2000 10"},
		{"data, then acknowledgement", []segment{seg(0), seg(1, size(0), acks(8))}, "1:0+1000 10, 1:1000+0 10 ack 8"},
	} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s v6=%v", tc.name, v6), func(t *testing.T) {
				var in [][]byte
				for _, s := range tc.in {
					s.v6 = v6
					in = append(in, s.marshal())
				}
				got, refused := joined(in...)
				var text []string
				for _, b := range got {
					s, err := unmarshal(b, true)
					if err != nil {
						t.Fatal(err)
					}
					line := fmt.Sprintf("%d:%d+%d %x", s.port, s.seq, len(s.data), s.flags)
					if len(s.data) == 0 && s.flags == ack {
						line += fmt.Sprintf(" ack %d", s.ack)
					}
					text = append(text, line)
				}
				if s := fmt.Sprint(text); s != "["+replaceAll(tc.want)+"]" || refused != 0 {
					t.Errorf("got %s, %d refused; want %s", s, refused, tc.want)
				}
			})
		}
	}
}

// replaceAll writes a list as fmt does.
func replaceAll(list string) string {
	return string(bytes.ReplaceAll([]byte(list), []byte(", "), []byte(" ")))
}

func TestJoinKeepsTheLastWindow(t *testing.T) {
	a := segment{flags: ack, window: 10, data: pattern(100)}
	b := segment{flags: ack | psh, window: 20, seq: 100, data: pattern(100)}
	got, _ := joined(a.marshal(), b.marshal())
	if s, err := unmarshal(got[0], true); len(got) != 1 || err != nil || s.window != 20 || s.flags != ack|psh {
		t.Errorf("%d packets, window %d, flags %x, %v", len(got), s.window, s.flags, err)
	}
}

func TestJoinStopsAtTheLargestPacket(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		var in [][]byte
		var want []byte
		for i := range 128 {
			s := segment{v6: v6, flags: ack, seq: uint32(i * 1228), options: stamps, data: pattern(1228)}
			in = append(in, s.marshal())
			want = append(want, s.data...)
		}
		got, _ := joined(in...)
		var all []byte
		for _, b := range got {
			s, err := unmarshal(b, true)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s.data...)
		}
		if len(got) != 3 || !bytes.Equal(all, want) {
			t.Errorf("v6=%v: %d packets, %d bytes", v6, len(got), len(all))
		}
	}
}

func TestMalformedIsDropped(t *testing.T) {
	good := segment{flags: ack, data: pattern(11), options: stamps}
	udp := append([]byte{0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2}, 1, 1, 2, 2, 0, 12, 0, 0, 9, 9, 9, 9)
	binary.BigEndian.PutUint16(udp[10:], ^ones(udp[:20]))
	sum := func(b []byte) []byte {
		binary.BigEndian.PutUint16(b[10:], 0)
		binary.BigEndian.PutUint16(b[10:], ^ones(b[:20]))
		return b
	}
	change := func(b []byte, at int, to byte) []byte {
		b = bytes.Clone(b)
		b[at] = to
		return b
	}
	v4, good6 := good.marshal(), good
	good6.v6 = true
	v6 := good6.marshal()
	for _, tc := range []struct {
		name string
		b    []byte
	}{
		{"version 5", change(v4, 0, 0x55)},
		{"half a header", v4[:19]},
		{"header shorter than one", sum(change(v4, 0, 0x44))},
		{"header longer than the packet", change(v4, 0, 0x4f)[:40]},
		{"longer than it is", sum(change(v4, 3, v4[3]+1))},
		{"shorter than its header", sum(change(v4, 3, 19))},
		{"IPv4 checksum", change(v4, 8, 1)},
		{"TCP checksum", change(v4, len(v4)-1, ^v4[len(v4)-1])},
		{"TCP cut off", sum(change(v4, 3, 39))[:39]},
		{"TCP header shorter than one", change(v4, 32, 0x40)},
		{"TCP header longer than the packet", change(v4, 32, 0xf0)},
		{"half an IPv6 header", v6[:39]},
		{"IPv6 longer than it is", change(v6, 5, v6[5]+1)},
		{"IPv6 TCP checksum", change(v6, 60, 99)},
		{"UDP checksum", change(udp, 27, 1)},
		{"UDP longer than it is", change(udp, 25, 13)},
		{"UDP shorter than its header", sum(change(udp, 3, 27))[:27]},
	} {
		if got, refused := joined(tc.b); len(got) != 0 || refused != 1 {
			t.Errorf("%s: %d packets, %d refused", tc.name, len(got), refused)
		}
	}
	// What is behind the packet's own end is not part of it.
	for _, b := range [][]byte{append(bytes.Clone(v4), 1, 2, 3), append(bytes.Clone(v6), 0), udp} {
		if got, refused := joined(b); len(got) != 1 || refused != 0 {
			t.Errorf("a good packet: %d packets, %d refused", len(got), refused)
		}
	}
}

// FuzzOffload cuts a segment and joins the packets again, in whatever order
// and company: the stream stays the stream.
func FuzzOffload(f *testing.F) {
	f.Add(uint16(5000), uint16(1228), uint32(7), byte(ack|psh), stamps, false, []byte{0x45, 0, 0, 20})
	f.Add(uint16(65000), uint16(1), uint32(1<<32-5), byte(ack|fin), []byte{}, true, segment{flags: ack, data: pattern(9)}.marshal())
	f.Fuzz(func(t *testing.T, size, mss uint16, seq uint32, flags byte, options []byte, v6 bool, stranger []byte) {
		s := segment{v6: v6, port: 7, seq: seq, ack: 3, flags: flags, window: 4, ttl: 64, options: options[:min(len(options), 40)&^3], data: pattern(min(int(size), 65535-120))}
		if mss != 0 && int(mss) < len(s.data)/2000 {
			return // more packets than are worth it
		}
		for _, b := range first(joined(stranger)) {
			if p, err := unmarshal(b, true); err == nil && p.port == s.port {
				return // no stranger
			}
		}
		var c cutter
		c.start(s.super(int(mss), int(mss)/2, 1, 70))
		var packets [][]byte
		for buf := make([]byte, 65536); c.packet != nil; {
			n := c.next(buf)
			if _, err := unmarshal(buf[:n], false); err != nil {
				t.Fatal(err)
			}
			packets = append(packets, bytes.Clone(buf[:n]))
			if len(packets)%3 == 0 {
				packets = append(packets, stranger)
			}
		}
		got := first(joined(packets...))
		var stream []byte
		next := seq
		for _, b := range got {
			if len(stranger) > 0 && bytes.HasPrefix(stranger, b) {
				continue
			}
			p, err := unmarshal(b, true)
			if err != nil {
				t.Fatal(err)
			}
			if p.port != s.port {
				continue
			}
			if p.seq != next {
				t.Fatalf("at %d comes %d", next, p.seq)
			}
			next += uint32(len(p.data))
			stream = append(stream, p.data...)
		}
		if !bytes.Equal(stream, s.data) {
			t.Fatalf("%d bytes, want %d", len(stream), len(s.data))
		}
	})
}
