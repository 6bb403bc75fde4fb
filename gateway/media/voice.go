package media

import "encoding/binary"

const (
	// classEF is the DSCP of voice: expedited forwarding (RFC 3246, RFC 4594
	// section 4.1).
	classEF = 46

	// maxVoice is the largest datagram of a call, in bytes: 60 ms of G.711 with
	// its RTP header, authentication tag and room for extensions. Video has larger ones.
	maxVoice = 600
)

// voice finds out whether what an app sends in a flow is a call. It looks at
// nothing but lengths and the fixed part of the RTP header, which SRTP leaves
// in the clear.
type voice struct {
	state  voiceState
	source uint32 // SSRC of the last datagram that looked like RTP
	seen   bool
}

type voiceState uint8

const (
	voiceUnsure voiceState = iota
	voiceYes
	voiceNo // for good
)

// look takes the next datagram and says whether to mark it. A flow is a call
// from its second RTP datagram of one source on, and none any more once it
// carries one that is too large for speech.
func (v *voice) look(payload []byte) bool {
	switch {
	case v.state == voiceNo:
		return false
	case len(payload) > maxVoice:
		v.state = voiceNo
		return false
	case v.state == voiceYes:
		return true
	}
	// RFC 3550 section 5.1: version 2. RFC 5761 section 4: 64 to 95 are RTCP's
	// in the lower seven bits of the second byte.
	if len(payload) < 12 || payload[0]>>6 != 2 || payload[1]&0x7f >= 64 && payload[1]&0x7f < 96 {
		return false
	}
	source := binary.BigEndian.Uint32(payload[8:])
	if v.seen && v.source == source {
		v.state = voiceYes
		return true
	}
	v.source, v.seen = source, true
	return false
}
