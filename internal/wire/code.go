package wire

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// Code is an enrolment code: a one-time secret and the hash of the internal
// CA's public key, so that an agent knows the gateway before it says anything
// to it. Its text form is "pv1.SECRET.CAHASH" with both parts in unpadded
// base64url.
type Code struct {
	// Secret is 128 random bits. The gateway keeps only its SHA-256.
	Secret [16]byte
	// CAHash is the SHA-256 of the root certificate's SubjectPublicKeyInfo.
	CAHash [32]byte
}

// NewCode makes a code for the CA with that key hash.
func NewCode(caHash [32]byte) Code {
	c := Code{CAHash: caHash}
	rand.Read(c.Secret[:]) // never fails since Go 1.24
	return c
}

var b64 = base64.RawURLEncoding.Strict()

// String returns the text form. It is a secret: print it once, never log it.
func (c Code) String() string {
	return "pv1." + c.SecretText() + "." + b64.EncodeToString(c.CAHash[:])
}

// SecretText returns the part of the code that is sent to the gateway.
func (c Code) SecretText() string { return b64.EncodeToString(c.Secret[:]) }

// SecretHash is what a gateway stores and looks a code up by.
func (c Code) SecretHash() [32]byte { return sha256.Sum256(c.Secret[:]) }

// ParseCode reads the text form. Its errors are meant for the person who
// pasted the code.
func ParseCode(s string) (Code, error) {
	var c Code
	parts := strings.Split(strings.TrimSpace(s), ".")
	if len(parts) != 3 || parts[0] != "pv1" {
		return Code{}, errors.New(`an enrolment code looks like "pv1.SECRET.CAHASH"; copy the whole line that "portvakt-gateway invite" printed`)
	}
	for _, f := range []struct {
		name string
		text string
		into []byte
	}{{"second", parts[1], c.Secret[:]}, {"third", parts[2], c.CAHash[:]}} {
		b, err := decode(f.text)
		if err != nil || len(b) != len(f.into) {
			return Code{}, fmt.Errorf("the %s part of the enrolment code is damaged; copy the whole line again", f.name)
		}
		copy(f.into, b)
	}
	return c, nil
}

// ParseSecret reads the secret part alone, as [EnrollRequest] carries it, and
// returns the hash to look it up by.
func ParseSecret(s string) (hash [32]byte, err error) {
	b, err := decode(s)
	if err != nil || len(b) != len(Code{}.Secret) {
		return hash, errors.New("the enrolment code is damaged")
	}
	return sha256.Sum256(b), nil
}

// decode is strict base64url. The standard decoder passes over line ends, which
// would give one code many forms.
func decode(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("a line end within the text")
	}
	return b64.DecodeString(s)
}
