package voice

import "testing"

func TestLook(t *testing.T) {
	rtp := func(source byte, n int) []byte {
		b := make([]byte, n)
		b[0], b[1], b[11] = 0x80, 0, source
		return b
	}
	rtcp := append([]byte{0x80, 200}, make([]byte, 26)...)
	stun := append([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, make([]byte, 12)...)
	for name, c := range map[string]struct {
		in   [][]byte
		want []bool
	}{
		"a call":                    {[][]byte{rtp(1, 172), rtp(1, 172), rtp(1, 172)}, []bool{false, true, true}},
		"a call after STUN":         {[][]byte{stun, stun, rtp(1, 60), rtp(1, 60)}, []bool{false, false, false, true}},
		"a call that changes hands": {[][]byte{rtp(1, 172), rtp(2, 172), rtp(2, 172), rtp(3, 172)}, []bool{false, false, true, true}},
		"STUN within a call":        {[][]byte{rtp(1, 172), rtp(1, 172), stun}, []bool{false, true, true}},
		"video":                     {[][]byte{rtp(1, 1200), rtp(1, 172), rtp(1, 172)}, []bool{false, false, false}},
		"video that begins small":   {[][]byte{rtp(1, 100), rtp(1, 100), rtp(1, 1200), rtp(1, 100)}, []bool{false, true, false, false}},
		"reports alone":             {[][]byte{rtcp, rtcp, rtcp}, []bool{false, false, false}},
		"short":                     {[][]byte{{0x80}, {0x80}, nil, rtp(1, 12)[:11]}, []bool{false, false, false, false}},
		"a lock-step protocol":      {[][]byte{[]byte("hello, is it me?"), []byte("hello, is it me?")}, []bool{false, false}},
	} {
		var v Flow
		for i, b := range c.in {
			if got := v.Look(b); got != c.want[i] {
				t.Errorf("%s, datagram %d: %v", name, i, got)
			}
		}
	}
}
