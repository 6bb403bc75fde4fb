package tunnel

import (
	"bytes"
	"crypto/hmac"
	"hash"

	"github.com/cloudflare/circl/dh/x25519"
	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"
)

// datagram is a handshake initiation as it arrived (WireGuard paper, 5.4.2):
//
//	type 1, 3 zeros | sender 4 | ephemeral 32 | static 32+16 | timestamp 12+16 | mac1 16 | mac2 16
type datagram = [device.MessageInitiationSize]byte

const (
	ephemeralAt = 8
	staticAt    = ephemeralAt + 32
	timestampAt = staticAt + 32 + 16
	mac1At      = timestampAt + 12 + 16
	mac2At      = mac1At + 16
)

// opener opens handshake initiations with the gateway's key, as upstream does
// once more when it answers: by then it is known that the answer is owed.
type opener struct {
	private x25519.Key
	hash    [32]byte // of the construction, the identifier and the public key
}

func newOpener(private, public [32]byte) *opener {
	return &opener{private: private, hash: mixHash(&device.InitialHash, public[:])}
}

// opened is an initiation whose sender's key was read. It proves nothing yet:
// anybody can name any key. wipe must be called when it is done with.
type opened struct {
	key      [32]byte // the sender's
	chain    [32]byte
	hash     [32]byte
	datagram *datagram
}

// open reads who sent an initiation: one Diffie-Hellman exchange, one opening.
func (o *opener) open(d *datagram) (in opened, ok bool) {
	ephemeral := (*x25519.Key)(d[ephemeralAt:staticAt])
	in.datagram = d
	in.hash = mixHash(&o.hash, ephemeral[:])
	device.KDF1(&in.chain, device.InitialChainKey[:], ephemeral[:])
	var shared x25519.Key
	var key [32]byte
	defer clear(key[:])
	defer clear(shared[:])
	// Shared reports a point of low order, whose exchange anybody knows.
	if !x25519.Shared(&shared, &o.private, ephemeral) {
		in.wipe()
		return in, false
	}
	device.KDF2(&in.chain, &key, in.chain[:], shared[:])
	if !unseal(in.key[:0], &key, d[staticAt:timestampAt], &in.hash) {
		in.wipe()
		return in, false
	}
	in.hash = mixHash(&in.hash, d[staticAt:timestampAt])
	return in, true
}

// shared is the exchange of the gateway's and a device's static keys, the same
// for every handshake of the two. ok is false for a key nobody can have.
func (o *opener) shared(key *[32]byte) (s [32]byte, ok bool) {
	pub := x25519.Key(*key)
	ok = x25519.Shared((*x25519.Key)(&s), &o.private, &pub)
	return s, ok
}

// timestamp proves that the holder of in.key made the initiation, and reads when
// by its clock. shared is the exchange with that key.
func (in *opened) timestamp(shared *[32]byte) (ts tai64n.Timestamp, ok bool) {
	var chain, key [32]byte
	defer clear(key[:])
	defer clear(chain[:])
	device.KDF2(&chain, &key, in.chain[:], shared[:])
	ok = unseal(ts[:0], &key, in.datagram[timestampAt:mac1At], &in.hash)
	return ts, ok
}

func (in *opened) wipe() {
	clear(in.chain[:])
	clear(in.hash[:])
}

func unseal(dst []byte, key *[32]byte, sealed []byte, ad *[32]byte) bool {
	aead, err := chacha20poly1305.New(key[:])
	if err != nil {
		return false // the key has its length
	}
	_, err = aead.Open(dst, device.ZeroNonce[:], sealed, ad[:])
	return err == nil
}

func mixHash(h *[32]byte, data []byte) [32]byte {
	var b [32 + 48]byte
	return blake2s.Sum256(append(append(b[:0], h[:]...), data...))
}

// answers tells whether an upstream handshake response is one to the initiation
// in d and was made for the device with that key: upstream signs it (mac1) with
// the key of the peer it answers.
func answers(response []byte, d *datagram, key *[32]byte) bool {
	if len(response) != device.MessageResponseSize || !bytes.Equal(response[8:12], d[4:8]) {
		return false
	}
	const at = device.MessageResponseSize - 32
	label := blake2s.Sum256(append([]byte(device.WGLabelMAC1), key[:]...))
	mac, err := blake2s.New128(label[:])
	if err != nil {
		return false // the label has its length
	}
	return hmac.Equal(sumOf(mac, response[:at]), response[at:at+16])
}

func sumOf(h hash.Hash, b []byte) []byte {
	_, _ = h.Write(b) // a hash takes everything
	return h.Sum(nil)
}
