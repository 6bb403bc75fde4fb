package store

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"errors"
)

// sealer encrypts preshared keys with AES-256-GCM and a random nonce in front
// (NIST SP 800-38D section 8.2.2). What belongs to one device and tunnel key
// cannot be opened as another's.
type sealer struct{ aead cipher.AEAD }

func newSealer(key [32]byte) (sealer, error) {
	if key == ([32]byte{}) {
		return sealer{}, errors.New("there is no key to seal preshared keys with")
	}
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return sealer{}, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return sealer{aead}, err
}

func sealContext(deviceID string, tunnelKey [32]byte) []byte {
	// The key has a fixed length, so that no two pairs read the same.
	return append(append([]byte("portvakt psk 1\x00"), tunnelKey[:]...), deviceID...)
}

func (s sealer) sealPSK(r Registration) []byte {
	return s.aead.Seal(nil, nil, r.PresharedKey[:], sealContext(r.DeviceID, r.TunnelKey))
}

func (s sealer) openPSK(sealed []byte, deviceID string, tunnelKey [32]byte) (psk [32]byte, err error) {
	b, err := s.aead.Open(nil, nil, sealed, sealContext(deviceID, tunnelKey))
	if err != nil {
		return psk, err
	}
	if len(b) != len(psk) {
		return psk, errors.New("it has the wrong length")
	}
	copy(psk[:], b)
	return psk, nil
}

var proofContext = []byte("portvakt store 1")

// proof returns a text that check accepts with the same key only.
func (s sealer) proof() string {
	return hex.EncodeToString(s.aead.Seal(nil, nil, nil, proofContext))
}

func (s sealer) check(proof string) error {
	b, err := hex.DecodeString(proof)
	if err != nil {
		return err
	}
	_, err = s.aead.Open(nil, nil, b, proofContext)
	return err
}
