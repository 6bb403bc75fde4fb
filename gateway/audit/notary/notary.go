// Package notary makes the decision log tamper-evident: a Merkle tree (RFC
// 6962) over its lines, and checkpoints signed over the tree. Whoever keeps a
// checkpoint can find out later whether anything before it was changed, removed
// or added, without trusting the gateway's machine.
//
// The notary follows the log's file as any reader does. Nothing that is granted
// waits for it; what it has not signed yet is what happened in the last seconds.
package notary

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/portvakt/portvakt/gateway/audit"
)

// Files in the tree's directory.
const (
	FileCheckpoint = "checkpoint"   // the latest one
	FileVerifier   = "verifier.key" // the public key that checks it
)

// every is how often new records are signed: well within the promised 10 s.
const every = 4 * time.Second

// Config of a Notary. All but Now and Log are required.
type Config struct {
	// LogFile is the decision log.
	LogFile string
	// Dir keeps the tree and the latest checkpoint.
	Dir string
	// KeyFile keeps the signing key; it is made on first use.
	KeyFile string
	Now     func() time.Time
	Log     *slog.Logger
}

// Notary signs a decision log. Run it from one goroutine; the rest may be called
// from any.
type Notary struct {
	cfg    Config
	signer note.Signer
	public string

	tree   tiles
	offset int64 // of the first byte behind the last record in the tree

	// mu guards what others ask for.
	mu     sync.Mutex
	last   Checkpoint
	broken error
}

// ErrChanged says that the log is not the one that was signed.
var ErrChanged = errors.New("the decision log is not the one that was signed")

// New reads or makes the key. It reads no record.
func New(cfg Config) (*Notary, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("preparing the audit tree: %w", err)
	}
	signer, public, err := openKey(cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	if err := writeWhole(filepath.Join(cfg.Dir, FileVerifier), []byte(public+"\n"), 0o644); err != nil {
		return nil, fmt.Errorf("writing the verifier key: %w", err)
	}
	return &Notary{cfg: cfg, signer: signer, public: public, tree: tiles{dir: cfg.Dir}}, nil
}

// VerifierKey is the public key that checks the checkpoints.
func (n *Notary) VerifierKey() string { return n.public }

// Last is the latest checkpoint; the zero one before the first.
func (n *Notary) Last() Checkpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.last
}

// Healthy returns nil, or why records are not being signed.
func (n *Notary) Healthy() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.broken
}

// Run signs what is new every few seconds, and once more when ctx is done. It
// ends only with ctx: a log that cannot be signed is said by Healthy and in the
// process's log, and tried again.
func (n *Notary) Run(ctx context.Context) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	resumed := false
	for {
		var err error
		if !resumed {
			err = n.resume()
			resumed = err == nil
		}
		if resumed {
			err = n.Sign()
		}
		n.tell(err)
		select {
		case <-ctx.Done():
			if resumed {
				n.tell(n.Sign())
			}
			return nil
		case <-tick.C:
		}
	}
}

func (n *Notary) tell(err error) {
	n.mu.Lock()
	was := n.broken
	n.broken = err
	n.mu.Unlock()
	switch {
	case err != nil && (was == nil || was.Error() != err.Error()):
		n.cfg.Log.Error("the decision log cannot be signed", "err", err)
	case err == nil && was != nil:
		n.cfg.Log.Info("the decision log is signed again")
	}
}

// resume goes on behind the last checkpoint. Tiles that are missing or wrong,
// as after a power failure, are made anew from the log; the log itself must then
// have the root that was signed.
func (n *Notary) resume() error {
	msg, err := os.ReadFile(filepath.Join(n.cfg.Dir, FileCheckpoint))
	if errors.Is(err, os.ErrNotExist) {
		n.offset = 0
		return n.tree.clear()
	}
	if err != nil {
		return fmt.Errorf("reading the checkpoint: %w", err)
	}
	v, err := ParseVerifier(n.public)
	if err != nil {
		return err
	}
	c, err := OpenCheckpoint(msg, v)
	if err != nil {
		return err
	}
	if n.tree.load(c.Size) == nil {
		if root, err := n.tree.root(); err == nil && root == c.Root {
			if n.offset, err = endOf(n.cfg.LogFile, c.Size); err != nil {
				return err
			}
			n.set(c)
			return nil
		}
	}
	n.cfg.Log.Warn("the audit tree is damaged; making it anew from the decision log")
	if err := n.tree.clear(); err != nil {
		return err
	}
	n.offset = 0
	if err := n.read(c.Size); err != nil {
		return err
	}
	root, err := n.tree.root()
	if err == nil && (n.tree.size != c.Size || root != c.Root) {
		err = fmt.Errorf("%w: its first %d records; run: portvakt-gateway audit verify", ErrChanged, c.Size)
	}
	if err != nil {
		return err
	}
	n.set(c)
	return nil
}

func (n *Notary) set(c Checkpoint) {
	n.mu.Lock()
	n.last = c
	n.mu.Unlock()
}

// Sign takes what is new into the tree and signs the tree if it grew. What is
// signed is on the disk first: a checkpoint never outlives its records.
func (n *Notary) Sign() error {
	if err := n.read(-1); err != nil {
		return err
	}
	if n.tree.size == n.Last().Size {
		return nil
	}
	if err := syncFile(n.cfg.LogFile); err != nil {
		return err
	}
	if err := n.tree.save(); err != nil {
		return err
	}
	root, err := n.tree.root()
	if err != nil {
		return err
	}
	c := Checkpoint{Size: n.tree.size, Root: root, Time: n.cfg.Now()}
	msg, err := note.Sign(&note.Note{Text: c.text()}, n.signer)
	if err != nil {
		return fmt.Errorf("signing a checkpoint: %w", err)
	}
	if err := writeWhole(filepath.Join(n.cfg.Dir, FileCheckpoint), msg, 0o644); err != nil {
		return fmt.Errorf("writing a checkpoint: %w", err)
	}
	n.set(c)
	return nil
}

// read takes the records behind offset into the tree, up to limit in all (-1:
// all there are).
func (n *Notary) read(limit int64) error {
	f, err := os.Open(n.cfg.LogFile)
	if err != nil {
		return fmt.Errorf("reading the decision log: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() < n.offset {
		return errors.Join(err, fmt.Errorf("%w: it is shorter than it was", ErrChanged))
	}
	return lines(io.NewSectionReader(f, n.offset, 1<<62), func(line []byte) (bool, error) {
		if limit >= 0 && n.tree.size >= limit {
			return false, nil
		}
		if seq, ok := sequence(line); !ok || seq != n.tree.size+1 {
			return false, fmt.Errorf("%w: behind record %d does not come record %d", ErrChanged, n.tree.size, n.tree.size+1)
		}
		if err := n.tree.add(tlog.RecordHash(line)); err != nil {
			return false, err
		}
		n.offset += int64(len(line)) + 1
		return true, nil
	})
}

// sequence reads a line's number. It is the line's first member, always.
func sequence(line []byte) (int64, bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"seq":`))
	if !ok {
		return 0, false
	}
	digits, _, ok := bytes.Cut(rest, []byte(","))
	if !ok || len(digits) > 19 {
		return 0, false
	}
	seq, err := strconv.ParseInt(string(digits), 10, 64)
	return seq, err == nil && seq > 0
}

// lines calls fn for each line that has its newline, without it, until fn
// returns false or an error.
func lines(r io.Reader, fn func(line []byte) (bool, error)) error {
	buf := make([]byte, 0, 1<<20)
	for {
		if len(buf) == cap(buf) {
			if cap(buf) > 2*audit.MaxLine {
				return fmt.Errorf("reading the decision log: a line is longer than %d bytes", audit.MaxLine)
			}
			buf = append(make([]byte, 0, 2*cap(buf)), buf...)
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		done := 0
		for {
			end := bytes.IndexByte(buf[done:], '\n')
			if end < 0 {
				break
			}
			more, err := fn(buf[done : done+end])
			if err != nil || !more {
				return err
			}
			done += end + 1
		}
		buf = buf[:copy(buf, buf[done:])]
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the decision log: %w", err)
		}
	}
}

// endOf finds the first byte behind the first n records.
func endOf(path string, n int64) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("reading the decision log: %w", err)
	}
	defer f.Close()
	var off, seen, seq int64
	err = lines(f, func(line []byte) (bool, error) {
		if seen == n {
			return false, nil
		}
		seen++
		seq, _ = sequence(line)
		off += int64(len(line)) + 1
		return true, nil
	})
	if err == nil && (seen != n || (n > 0 && seq != n)) {
		err = fmt.Errorf("%w: record %d was signed and is not there", ErrChanged, n)
	}
	return off, err
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("syncing the decision log: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("syncing the decision log: %w", err)
	}
	return nil
}
