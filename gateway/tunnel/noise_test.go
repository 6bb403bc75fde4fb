package tunnel

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/cloudflare/circl/dh/x25519"
	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.zx2c4.com/wireguard/device"
)

// Initiator is the device's side of one WireGuard tunnel, without a device:
// thousands of them fit into a test. It is written from the paper; the gateway's
// upstream device checks it by answering.
type Initiator struct {
	Public, PSK [32]byte

	private, gateway, static [32]byte // static: the two static keys' exchange
	ephemeral                [32]byte
	hash, chain              [32]byte
	index, remote            uint32
	send                     [32]byte
	counter                  uint64
	cookies                  device.CookieGenerator
}

var errHandshake = errors.New("the response does not open")

// NewInitiator makes a device with a new key.
func NewInitiator(gateway [32]byte) *Initiator {
	i := &Initiator{gateway: gateway}
	i.private, i.Public = pair()
	i.static = exchange(&i.private, &i.gateway)
	i.PSK = blake2s.Sum256(i.private[:])
	i.cookies.Init(gateway)
	return i
}

func exchange(private, public *[32]byte) (s [32]byte) {
	x25519.Shared((*x25519.Key)(&s), (*x25519.Key)(private), (*x25519.Key)(public))
	return s
}

func seal(dst []byte, key *[32]byte, counter uint64, plain, ad []byte) []byte {
	aead, _ := chacha20poly1305.New(key[:])
	var nonce [12]byte
	binary.LittleEndian.PutUint64(nonce[4:], counter)
	return aead.Seal(dst, nonce[:], plain, ad)
}

// Initiate writes an initiation with that index and time.
func (i *Initiator) Initiate(index uint32, at time.Time) []byte {
	var public, key [32]byte
	i.ephemeral, public = pair()
	i.index = index
	i.chain, i.hash = device.InitialChainKey, mixHash(&device.InitialHash, i.gateway[:])
	b := binary.LittleEndian.AppendUint32([]byte{1, 0, 0, 0}, index)
	b = append(b, public[:]...)
	i.hash = mixHash(&i.hash, public[:])
	device.KDF1(&i.chain, i.chain[:], public[:])
	es := exchange(&i.ephemeral, &i.gateway)
	device.KDF2(&i.chain, &key, i.chain[:], es[:])
	b = seal(b, &key, 0, i.Public[:], i.hash[:])
	i.hash = mixHash(&i.hash, b[staticAt:])
	device.KDF2(&i.chain, &key, i.chain[:], i.static[:])
	var ts [12]byte
	binary.BigEndian.PutUint64(ts[:], 0x400000000000000a+uint64(at.Unix()))
	binary.BigEndian.PutUint32(ts[8:], uint32(at.Nanosecond()))
	b = seal(b, &key, 0, ts[:], i.hash[:])
	i.hash = mixHash(&i.hash, b[timestampAt:])
	b = append(b, make([]byte, 32)...)
	i.cookies.AddMacs(b)
	return b
}

// Finish reads a response and derives the keys to send with.
func (i *Initiator) Finish(b []byte) error {
	if len(b) != device.MessageResponseSize || binary.LittleEndian.Uint32(b[8:]) != i.index {
		return errHandshake
	}
	hash, chain := i.hash, i.chain
	their := [32]byte(b[12:44])
	hash = mixHash(&hash, their[:])
	device.KDF1(&chain, chain[:], their[:])
	ee, se := exchange(&i.ephemeral, &their), exchange(&i.private, &their)
	device.KDF1(&chain, chain[:], ee[:])
	device.KDF1(&chain, chain[:], se[:])
	var tau, key, receive [32]byte
	device.KDF3(&chain, &tau, &key, chain[:], i.PSK[:])
	hash = mixHash(&hash, tau[:])
	if !unseal(nil, &key, b[44:60], &hash) {
		return errHandshake
	}
	device.KDF2(&i.send, &receive, chain[:], nil)
	i.remote, i.counter = binary.LittleEndian.Uint32(b[4:]), 0
	return nil
}

// Cookie reads a cookie reply; the next initiation proves the address with it.
func (i *Initiator) Cookie(b []byte) bool {
	if len(b) != device.MessageCookieReplySize || b[0] != device.MessageCookieReplyType {
		return false
	}
	r := device.MessageCookieReply{Type: 3, Receiver: binary.LittleEndian.Uint32(b[4:])}
	copy(r.Nonce[:], b[8:])
	copy(r.Cookie[:], b[32:])
	return r.Receiver == i.index && i.cookies.ConsumeReply(&r)
}

// Transport seals an inner packet; none is a keepalive, which confirms the keys.
func (i *Initiator) Transport(packet []byte) []byte {
	b := binary.LittleEndian.AppendUint32([]byte{4, 0, 0, 0}, i.remote)
	b = binary.LittleEndian.AppendUint64(b, i.counter)
	i.counter++
	return seal(b, &i.send, i.counter-1, packet, nil)
}
