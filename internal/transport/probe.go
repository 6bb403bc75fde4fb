package transport

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
)

// A laptop on a WebSocket asks by UDP whether UDP works again, without touching
// the tunnel: WireGuard would take a datagram of its own as the word to move.
// The gateway answers whoever has a WebSocket open and knows the key it was
// given there, once for each counter, with as many bytes as it was asked; to
// anybody else it is silent.
//
//	4 bytes  "PVQ" 1 or "PVA" 1, of which no WireGuard message begins
//	8        the key's name
//	8        a counter that grows
//	16       HMAC-SHA256 of all before, cut
const probeSize = 36

// ProbeHeader is the header of the upgrade's answer that holds the key.
const ProbeHeader = "Portvakt-Udp-Probe"

// ProbeKey is the key of one Stream's probes.
type ProbeKey struct {
	name [8]byte
	key  [16]byte
}

func newProbeKey() (k ProbeKey) {
	_, _ = rand.Read(k.name[:]) // never fails
	_, _ = rand.Read(k.key[:])
	return k
}

// String is the key as [ParseProbeKey] reads it.
func (k ProbeKey) String() string {
	return base64.RawURLEncoding.EncodeToString(append(k.name[:], k.key[:]...))
}

// ParseProbeKey reads a key. Its error does not repeat it.
func ParseProbeKey(s string) (k ProbeKey, err error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(k.name)+len(k.key) {
		return k, errors.New("the key of UDP probes is not 24 bytes in base64url")
	}
	copy(k.name[:], b)
	copy(k.key[:], b[len(k.name):])
	return k, nil
}

const (
	question = "PVQ\x01"
	answer   = "PVA\x01"
)

func (k ProbeKey) message(head string, counter uint64) []byte {
	b := make([]byte, 0, probeSize)
	b = append(b, head...)
	b = append(b, k.name[:]...)
	b = binary.BigEndian.AppendUint64(b, counter)
	m := hmac.New(sha256.New, k.key[:])
	m.Write(b)
	return append(b, m.Sum(nil)[:16]...)
}

// Question is the datagram that asks.
func (k ProbeKey) Question(counter uint64) []byte { return k.message(question, counter) }

// Answered says whether a datagram is the answer to a question, and to which.
func (k ProbeKey) Answered(b []byte) (counter uint64, ok bool) { return k.open(answer, b) }

func (k ProbeKey) open(head string, b []byte) (counter uint64, ok bool) {
	if len(b) != probeSize || string(b[:4]) != head || string(b[4:12]) != string(k.name[:]) {
		return 0, false
	}
	counter = binary.BigEndian.Uint64(b[12:])
	return counter, hmac.Equal(b, k.message(head, counter))
}

// isProbe says whether a datagram is none of WireGuard's but may be a question.
func isProbe(b []byte) bool { return len(b) == probeSize && string(b[:4]) == question }

// probeName is the name of the key in a probe.
func probeName(b []byte) [8]byte { return [8]byte(b[4:12]) }
