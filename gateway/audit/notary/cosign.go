package notary

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/mod/sumdb/note"
)

// FileCosigned is the newest checkpoint that a witness has cosigned, in the
// tree's directory.
const FileCosigned = "cosigned"

// cosignature is the note algorithm of a C2SP tlog-cosignature with Ed25519.
const cosignature = 4

// cosigner checks a witness's signatures: of a text, and of the time at which
// the witness saw it.
type cosigner struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

// ParseWitness reads the key of a witness: NAME+HASH+BASE64, of a byte 0x04 and
// an Ed25519 key.
func ParseWitness(key string) (note.Verifier, error) {
	key = strings.TrimSpace(key)
	name, rest, ok := strings.Cut(key, "+")
	hash, text, ok2 := strings.Cut(rest, "+")
	raw, err := base64.StdEncoding.DecodeString(text)
	if !ok || !ok2 || err != nil || name == "" || strings.ContainsFunc(key, unicode.IsSpace) || len(raw) != 1+ed25519.PublicKeySize || raw[0] != cosignature {
		return nil, errors.New("reading the witness's key: it must look like NAME+HASH+KEY and be one for cosignatures (of type 4)")
	}
	sum := sha256.Sum256(append([]byte(name+"\n"), raw...))
	c := &cosigner{name: name, hash: binary.BigEndian.Uint32(sum[:]), key: raw[1:]}
	if hash != fmt.Sprintf("%08x", c.hash) {
		return nil, errors.New("reading the witness's key: its hash is not that of the key; copy all of it again")
	}
	return c, nil
}

// Name implements [note.Verifier].
func (c *cosigner) Name() string { return c.name }

// KeyHash implements [note.Verifier].
func (c *cosigner) KeyHash() uint32 { return c.hash }

// Verify implements [note.Verifier].
func (c *cosigner) Verify(text, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	at := binary.BigEndian.Uint64(sig)
	return at <= math.MaxInt64 && ed25519.Verify(c.key, cosigned(at, text), sig[8:])
}

// cosigned is what a witness signs of a text.
func cosigned(at uint64, text []byte) []byte {
	return append([]byte("cosignature/v1\ntime "+strconv.FormatUint(at, 10)+"\n"), text...)
}

// Cosigned is a checkpoint and when a witness found it consistent with all it
// had seen of the log.
type Cosigned struct {
	Checkpoint
	At time.Time // of the witness's clock
}

// OpenCosigned checks that a checkpoint is signed by the log and by the witness,
// and reads it.
func OpenCosigned(msg []byte, log, witness note.Verifier) (Cosigned, error) {
	c, err := OpenCheckpoint(msg, log)
	if err != nil {
		return Cosigned{}, err
	}
	n, err := note.Open(msg, note.VerifierList(witness))
	if err != nil {
		return Cosigned{}, fmt.Errorf("checking the witness's signature on the checkpoint: %w", err)
	}
	raw, err := base64.StdEncoding.DecodeString(n.Sigs[0].Base64)
	if err != nil || len(raw) < 12 {
		return Cosigned{}, errors.Join(err, errors.New("reading the witness's signature: it has no time"))
	}
	return Cosigned{Checkpoint: c, At: time.Unix(int64(binary.BigEndian.Uint64(raw[4:])), 0).UTC()}, nil
}
