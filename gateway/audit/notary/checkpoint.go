package notary

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Origin begins the first line of every checkpoint's text: what kind of log it is
// of. A slash and the hash of the key that signs it follow, because a witness
// tells logs apart by that line. (Older checkpoints have it alone.)
const Origin = "portvakt.audit/v1"

// Checkpoint is what was signed: the root over the first Size records, at a time
// of the gateway's clock.
type Checkpoint struct {
	Size int64
	Root tlog.Hash
	Time time.Time
}

// text is the part that this signer signs: a C2SP tlog-checkpoint with the time
// as its one extension line.
func (c Checkpoint) text(s note.Signer) string {
	return fmt.Sprintf("%s/%08x\n%d\n%s\ntime %s\n", Origin, s.KeyHash(), c.Size, c.Root, c.Time.UTC().Format(time.RFC3339))
}

// ParseVerifier reads a verifier key as the file [FileVerifier] holds it.
func ParseVerifier(key string) (note.Verifier, error) {
	v, err := note.NewVerifier(strings.TrimSpace(key))
	if err != nil {
		return nil, fmt.Errorf("reading the verifier key: it must look like %s+HASH+KEY: %w", "portvakt-audit", err)
	}
	return v, nil
}

// OpenCheckpoint checks a checkpoint's signature and reads it.
func OpenCheckpoint(msg []byte, v note.Verifier) (Checkpoint, error) {
	n, err := note.Open(msg, note.VerifierList(v))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("checking the checkpoint's signature: %w", err)
	}
	bad := func() (Checkpoint, error) {
		return Checkpoint{}, errors.New("reading the checkpoint: its text is not one of this log's")
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) < 4 || lines[0] != Origin && !strings.HasPrefix(lines[0], Origin+"/") {
		return bad()
	}
	var c Checkpoint
	if c.Size, err = strconv.ParseInt(lines[1], 10, 64); err != nil || c.Size < 0 || strconv.FormatInt(c.Size, 10) != lines[1] {
		return bad()
	}
	if c.Root, err = tlog.ParseHash(lines[2]); err != nil {
		return bad()
	}
	for _, l := range lines[3:] {
		if at, ok := strings.CutPrefix(l, "time "); ok {
			if c.Time, err = time.Parse(time.RFC3339, at); err != nil {
				return bad()
			}
		}
	}
	return c, nil
}

// openKey reads the signing key, or makes one on first use. The verifier key is
// kept beside the tree, for whoever checks it.
func openKey(path string) (note.Signer, string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return newKey(path)
	}
	if err != nil {
		return nil, "", fmt.Errorf("reading the checkpoint key: %w", err)
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, "", fmt.Errorf("reading the checkpoint key: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, "", fmt.Errorf("%s is readable by others, so it may be known to them; run: chmod 600 %s, or remove it to make a new one", path, path)
	}
	secret, public, ok := strings.Cut(strings.TrimSpace(string(text)), "\n")
	signer, err := note.NewSigner(secret)
	if !ok || err != nil {
		return nil, "", fmt.Errorf("%s does not hold a checkpoint key; restore it from a backup", path)
	}
	if v, err := note.NewVerifier(public); err != nil || v.KeyHash() != signer.KeyHash() || v.Name() != signer.Name() {
		return nil, "", fmt.Errorf("%s holds two keys that do not belong together; restore it from a backup", path)
	}
	return signer, public, nil
}

func newKey(path string) (note.Signer, string, error) {
	secret, public, err := note.GenerateKey(rand.Reader, "portvakt-audit")
	if err != nil {
		return nil, "", fmt.Errorf("making a checkpoint key: %w", err)
	}
	err = writeWhole(path, []byte(secret+"\n"+public+"\n"), 0o600)
	if err == nil {
		err = syncDir(filepath.Dir(path)) // before anything is signed with it
	}
	if err != nil {
		return nil, "", fmt.Errorf("making a checkpoint key: %w", err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		return nil, "", fmt.Errorf("making a checkpoint key: %w", err)
	}
	return signer, public, nil
}

// writeWhole leaves either the old file or the new one, whole and on the disk.
func writeWhole(path string, data []byte, mode os.FileMode) error {
	return renameio.WriteFile(path, data, mode, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(mode))
}
