package transport

import (
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// intake bounds what WireGuard holds of what came in.
//
// WireGuard brings the packets of a session out in the order in which they went
// in, those of one receiving in one writing, and drops without a word what is
// forged, repeated or not from its peer: whatever is written says of everything
// of its session that came before it that it is gone too. What is left is a
// session of which nothing is written at all, and that is given up after some
// patience. So rubbish with a live session's index takes room for that long and
// stops nobody, unless more than the whole limit of it comes within that time.
type intake struct {
	limit    int
	patience time.Duration
	free     chan struct{} // holds a token when a reader that waits may go on
	tally    Tally

	mu       sync.Mutex
	count    int // packets under way
	waiting  int // readers
	turn     int // of receiving
	sessions map[uint32]*incoming
	crowd    int       // how many sessions there may be before the idle ones go
	spare    [][]*byte // emptied batches
}

// incoming is what is under way of the session of one index.
type incoming struct {
	batches [][]*byte // the buffers of each receiving, the oldest first
	turn    int       // of the newest
	writing int       // batches that are being written
	since   time.Time // when something left last, or the oldest came
}

const (
	spareBatches = 64
	crowdAtLeast = 1024
)

func newIntake(limit int, patience time.Duration) *intake {
	return &intake{
		limit: limit, patience: patience, free: make(chan struct{}, 1), tally: Tally{now: time.Now},
		sessions: make(map[uint32]*incoming), crowd: crowdAtLeast,
	}
}

// held is a transport message that WireGuard was given.
type held struct {
	index  uint32 // of a session, if there is such a one
	buffer *byte  // nil if it is no transport message
	empty  bool   // it carries no packet, and is not counted as under way
}

// receive makes fn wait until there is room. WireGuard keeps the buffer of a
// transport message whose index names a session and puts another in its place:
// a buffer that comes back was of a message that was refused, which is not under
// way. Who knows no index of a session can so not hold up anything.
func (k *intake) receive(fn conn.ReceiveFunc) conn.ReceiveFunc {
	var given []held // by the last call
	return func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		back, empty := given[:0], 0
		for i, m := range given {
			switch {
			case m.buffer == nil || m.buffer != &packets[i][0]:
			case m.empty:
				empty++
			default:
				back = append(back, m)
			}
		}
		k.refused(back)
		k.tally.stray(empty)
		k.wait()
		n, err := fn(packets, sizes, eps)
		given = given[:0]
		for i, size := range sizes[:n] {
			m := held{}
			if b := packets[i][:size]; Kind(b) == device.MessageTransportType {
				m = held{sessionOf(b), &b[0], !CarriesPacket(b)}
			}
			given = append(given, m)
		}
		k.entered(given)
		return n, err
	}
}

// sessionOf is the index at which a transport message is aimed.
func sessionOf(b []byte) uint32 { return binary.LittleEndian.Uint32(b[4:]) }

// wait returns when there is room.
func (k *intake) wait() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.count < k.limit {
		return
	}
	again := k.forgetLocked()
	if k.count < k.limit {
		return
	}
	k.waiting++
	timer := time.NewTimer(again)
	defer timer.Stop()
	for k.count >= k.limit {
		k.mu.Unlock()
		select {
		case <-k.free:
			k.mu.Lock()
		case <-timer.C:
			k.mu.Lock()
			timer.Reset(k.forgetLocked())
		}
	}
	k.waiting--
	k.wakeLocked()
}

// wakeLocked lets one reader go on if there is room for many packets.
func (k *intake) wakeLocked() {
	if k.waiting > 0 && k.count <= k.limit/2 {
		select {
		case k.free <- struct{}{}:
		default:
		}
	}
}

// forgetLocked gives up the sessions of which nothing left for as long as is
// patient, and nothing is leaving. It returns when to look again.
func (k *intake) forgetLocked() (again time.Duration) {
	again = k.patience
	now := time.Now()
	for _, s := range k.sessions {
		if s.writing > 0 || len(s.batches) == 0 {
			continue
		}
		if rest := k.patience - now.Sub(s.since); rest > 0 {
			again = min(again, rest)
		} else {
			k.goneLocked(s, len(s.batches))
		}
	}
	return again
}

// goneLocked takes the first n batches of a session out of the account.
func (k *intake) goneLocked(s *incoming, n int) {
	for _, b := range s.batches[:n] {
		k.count -= len(b)
		if len(k.spare) < spareBatches {
			clear(b) // the buffers are WireGuard's
			k.spare = append(k.spare, b[:0])
		}
	}
	s.batches = slices.Delete(s.batches, 0, n)
}

// entered notes messages that WireGuard was given in one receiving.
func (k *intake) entered(given []held) {
	n := 0
	k.mu.Lock()
	k.turn++
	for _, m := range given {
		if m.buffer == nil || m.empty {
			continue
		}
		n++
		s := k.sessionLocked(m.index)
		if len(s.batches) == 0 {
			s.since = time.Now()
		}
		if len(s.batches) == 0 || s.turn != k.turn {
			s.batches, s.turn = append(s.batches, k.batchLocked()), k.turn
		}
		newest := len(s.batches) - 1
		s.batches[newest] = append(s.batches[newest], m.buffer)
	}
	k.count += n
	k.mu.Unlock()
	k.tally.enter(n)
}

func (k *intake) sessionLocked(index uint32) *incoming {
	if s := k.sessions[index]; s != nil {
		return s
	}
	if len(k.sessions) >= k.crowd {
		for i, s := range k.sessions {
			if len(s.batches) == 0 && s.writing == 0 {
				delete(k.sessions, i)
			}
		}
		k.crowd = max(crowdAtLeast, 2*len(k.sessions))
	}
	s := &incoming{}
	k.sessions[index] = s
	return s
}

func (k *intake) batchLocked() []*byte {
	last := len(k.spare) - 1
	if last < 0 {
		return nil
	}
	b := k.spare[last]
	k.spare = k.spare[:last]
	return b
}

// refused notes messages of the last receiving that WireGuard never took.
func (k *intake) refused(back []held) {
	if len(back) == 0 {
		return
	}
	k.tally.back(len(back))
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range back {
		s := k.sessions[m.index]
		if s == nil || len(s.batches) == 0 {
			continue // given up meanwhile
		}
		newest := len(s.batches) - 1
		if i := slices.Index(s.batches[newest], m.buffer); i >= 0 {
			s.batches[newest] = slices.Delete(s.batches[newest], i, i+1)
			k.count--
		}
		if len(s.batches[newest]) == 0 {
			s.batches = slices.Delete(s.batches, newest, newest+1)
		}
		if len(s.batches) == 0 && s.writing == 0 {
			delete(k.sessions, m.index)
		}
	}
	k.wakeLocked()
}

// leaves notes that packets of one peer are being written, and adds to out what
// left has to be told once they are. Before each packet there still is the head
// of the message it came in.
func (k *intake) leaves(out []held, bufs [][]byte) []held {
	for _, b := range bufs {
		m := held{index: sessionOf(b), buffer: &b[0]}
		if last := len(out) - 1; last >= 0 && out[last].index == m.index {
			out[last] = m
		} else {
			out = append(out, m)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range out {
		if s := k.sessions[m.index]; s != nil {
			s.writing++
		}
	}
	return out
}

// left notes that what leaves noted was written.
func (k *intake) left(out []held, packets int) {
	k.tally.write(packets)
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range out {
		s := k.sessions[m.index]
		if s == nil {
			continue
		}
		s.writing = max(0, s.writing-1)
		// A buffer that is in two batches has come back to be in the newer one.
		for i := len(s.batches) - 1; i >= 0; i-- {
			if slices.Contains(s.batches[i], m.buffer) {
				k.goneLocked(s, i+1)
				s.since = time.Now()
				break
			}
		}
	}
	k.wakeLocked()
}
