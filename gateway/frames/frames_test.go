package frames

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// frame builds one; a client's is masked with zeros.
func frame(first byte, client bool, payload int) []byte {
	b := []byte{first, 0}
	switch {
	case payload < 126:
		b[1] = byte(payload)
	case payload < 1<<16:
		b[1] = 126
		b = binary.BigEndian.AppendUint16(b, uint16(payload))
	default:
		b[1] = 127
		b = binary.BigEndian.AppendUint64(b, uint64(payload))
	}
	if client {
		b[1] |= 0x80
		b = append(b, 0, 0, 0, 0)
	}
	return append(b, bytes.Repeat([]byte("p"), payload)...)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestReader(t *testing.T) {
	server := func(first byte, n int) []byte { return frame(first, false, n) }
	for name, c := range map[string]struct {
		client, deflate bool
		good, rest      []byte // what passes, and what follows and does not
		want            error
	}{
		"messages":             {good: join(server(0x81, 0), server(0x82, 1), server(0x82, 125), server(0x82, 126), server(0x81, 1000))},
		"a client's":           {client: true, good: join(frame(0x81, true, 5), frame(0x89, true, 0), frame(0x88, true, 2))},
		"fragments":            {good: join(server(0x01, 10), server(0x89, 4), server(0x00, 10), server(0x8a, 125), server(0x80, 0), server(0x81, 3))},
		"the largest":          {good: server(0x82, 1000)},
		"too large":            {good: server(0x82, 10), rest: server(0x82, 1001), want: ErrTooLarge},
		"too large, 64 bits":   {rest: server(0x82, 70_000), want: ErrTooLarge},
		"too large in pieces":  {good: join(server(0x02, 600), server(0x00, 400)), rest: server(0x80, 1), want: ErrTooLarge},
		"a bomb's header":      {rest: []byte{0x82, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, want: ErrTooLarge},
		"no mask":              {client: true, good: frame(0x81, true, 1), rest: server(0x81, 1), want: ErrMalformed},
		"a mask":               {good: server(0x81, 1), rest: frame(0x81, true, 1), want: ErrMalformed},
		"RSV1":                 {rest: server(0xc1, 1), want: ErrMalformed},
		"RSV1 agreed on":       {deflate: true, good: join(server(0xc1, 1), server(0x41, 1), server(0x80, 1))},
		"RSV1 continued":       {deflate: true, good: server(0x41, 1), rest: server(0xc0, 1), want: ErrMalformed},
		"RSV1 of a ping":       {deflate: true, rest: server(0xc9, 1), want: ErrMalformed},
		"RSV2":                 {deflate: true, rest: server(0xa1, 1), want: ErrMalformed},
		"RSV3":                 {deflate: true, rest: server(0x91, 1), want: ErrMalformed},
		"opcode 3":             {rest: server(0x83, 1), want: ErrMalformed},
		"opcode 11":            {rest: server(0x8b, 1), want: ErrMalformed},
		"a ping in pieces":     {rest: server(0x09, 1), want: ErrMalformed},
		"a large ping":         {rest: server(0x89, 126), want: ErrMalformed},
		"half a close code":    {rest: server(0x88, 1), want: ErrMalformed},
		"behind a close":       {good: server(0x88, 2), rest: server(0x81, 1), want: ErrMalformed},
		"a message in another": {good: server(0x01, 1), rest: server(0x81, 1), want: ErrMalformed},
		"a piece of nothing":   {rest: server(0x80, 1), want: ErrMalformed},
		"16 bits for 125":      {rest: []byte{0x82, 126, 0, 125}, want: ErrMalformed},
		"64 bits for 65535":    {rest: []byte{0x82, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, want: ErrMalformed},
		"the sign bit":         {rest: []byte{0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0}, want: ErrMalformed},
		"HTTP instead":         {rest: []byte("HTTP/1.1 200 OK\r\n"), want: ErrMalformed},
	} {
		all := join(c.good, c.rest)
		for _, step := range []int{len(all), 1, 3, 64} {
			r, passed := NewReader(c.client, c.deflate, 1000), 0
			var err error
			for rest := all; len(rest) > 0 && err == nil; {
				var n int
				k := min(step, len(rest))
				n, err = r.Read(rest[:k])
				passed += n
				rest = rest[k:]
			}
			if !errors.Is(err, c.want) {
				t.Errorf("%s, %d at a time: %v, want %v", name, step, err, c.want)
			}
			// A header that came in pieces has passed in part when it is judged.
			if whole := step == len(all); whole && passed != len(c.good) || passed > len(c.good)+13 {
				t.Errorf("%s, %d at a time: %d bytes passed, want %d", name, step, passed, len(c.good))
			}
			if _, again := r.Read([]byte{0x81, 0}); c.want != nil && !errors.Is(again, c.want) {
				t.Errorf("%s: it went on after %v", name, err)
			}
		}
	}
}

func TestBetween(t *testing.T) {
	r := NewReader(false, false, 1000)
	b := join(frame(0x01, false, 2), frame(0x80, false, 200), frame(0x88, false, 2))
	want := map[int]bool{0: true, 4: true, 4 + 204: true}
	for i := range b {
		if r.Between() != want[i] {
			t.Errorf("before byte %d: %v", i, r.Between())
		}
		if _, err := r.Read(b[i : i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if r.Between() {
		t.Error("a frame may come behind a close frame")
	}
}

func TestOurFrames(t *testing.T) {
	if n, err := NewReader(false, false, 1).Read(join(Ping(), Ping(), Close(CloseTooBig))); n != 8 || err != nil {
		t.Errorf("%d %v", n, err)
	}
}

// FuzzReader: however the bytes arrive, the same passes; and what passes whole
// frames by another reading of RFC 6455 has messages no larger than the limit.
func FuzzReader(f *testing.F) {
	f.Add(join(frame(0x81, false, 3), frame(0x01, false, 130), frame(0x80, false, 2)), false, false)
	f.Add(join(frame(0xc1, true, 3), frame(0x89, true, 0), frame(0x88, true, 2)), true, true)
	f.Add(frame(0x82, false, 2000), false, false)
	f.Add([]byte{0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0}, false, false)
	f.Fuzz(func(t *testing.T, b []byte, client, deflate bool) {
		const limit = 1000
		whole := NewReader(client, deflate, limit)
		n, err := whole.Read(b)
		slow, passed := NewReader(client, deflate, limit), 0
		var serr error
		for i := range b {
			k, e := slow.Read(b[i : i+1])
			passed += k
			if serr = e; e != nil {
				break
			}
		}
		if (err == nil) != (serr == nil) || err != nil && err.Error() != serr.Error() || n > passed || passed > n+13 {
			t.Fatalf("at once %d %v, byte by byte %d %v", n, err, passed, serr)
		}
		message := uint64(0)
		for rest := b[:n]; len(rest) >= 2; {
			length, at := uint64(rest[1]&0x7f), 2
			switch {
			case length == 126 && len(rest) >= 4:
				length, at = uint64(binary.BigEndian.Uint16(rest[2:])), 4
			case length == 127 && len(rest) >= 10:
				length, at = binary.BigEndian.Uint64(rest[2:]), 10
			case length >= 126:
				return // the header goes on
			}
			if client {
				at += 4
			}
			if rest[0]&0x08 == 0 {
				if rest[0]&0x0f != 0 {
					message = 0
				}
				if message += length; message > limit && at <= len(rest) {
					t.Fatalf("a message of %d bytes passed", message)
				}
			}
			if uint64(len(rest)-min(at, len(rest))) < length {
				return
			}
			rest = rest[min(at, len(rest)):][length:]
		}
	})
}
