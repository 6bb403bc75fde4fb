// Package notary makes the decision log tamper-evident: a Merkle tree (RFC
// 6962) over its lines, and checkpoints signed over the tree. Whoever keeps a
// checkpoint can find out later whether anything before it was changed, removed
// or added, without trusting the gateway's machine.
//
// The notary follows the log's file as any reader does. Nothing that is granted
// waits for it; what it has not signed yet is what happened in the last seconds.
package notary

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
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

// again is how often a log that is not the one that was signed is looked at: all
// of a file is read for it.
const again = time.Minute

// Config of a Notary. All but Now and Log are required.
type Config struct {
	// LogFile is the decision log: the file that is written to.
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

	tree tiles
	at   audit.Place // behind the last record in the tree

	// mu guards what others ask for.
	mu     sync.Mutex
	last   Checkpoint
	broken error
	spoilt error // what was about to be removed is not what was signed
}

// ErrChanged says that the log is not the one that was signed.
var ErrChanged = errors.New("the decision log is not the one that was signed")

// New reads or makes the key, and with a new key the mark that nothing was signed
// with it. It reads no record.
func New(cfg Config) (*Notary, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	err := os.MkdirAll(cfg.Dir, 0o700)
	if err == nil {
		err = syncDir(filepath.Dir(cfg.Dir))
	}
	if err != nil {
		return nil, fmt.Errorf("preparing the audit tree: %w", err)
	}
	if err := founded(cfg.KeyFile); err != nil {
		return nil, err
	}
	signer, public, err := openKey(cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	return &Notary{cfg: cfg, signer: signer, public: public, tree: tiles{dir: cfg.Dir}}, nil
}

// Last is the latest checkpoint; the zero one before the first.
func (n *Notary) Last() Checkpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.last
}

// Healthy returns nil, or why records are not being signed, or that old ones are
// not what was signed.
func (n *Notary) Healthy() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return errors.Join(n.broken, n.spoilt)
}

// Run signs what is new every few seconds, and once more when ctx is done. It
// ends only with ctx: a log that cannot be signed is said by Healthy and in the
// process's log, and tried again.
func (n *Notary) Run(ctx context.Context) error {
	resumed := false
	for {
		var err error
		wait := every
		if !resumed {
			err = n.resume()
			resumed = err == nil
			if errors.Is(err, ErrChanged) {
				wait = again
			}
		}
		if resumed {
			err = n.Sign()
		}
		n.tell(err)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			if resumed {
				n.tell(n.Sign())
			}
			return nil
		case <-timer.C:
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

// lines reads on behind the record numbered after, which was the last.
func (n *Notary) lines(after int64, fn func(line []byte) (bool, error)) error {
	return changed(audit.Lines(n.cfg.LogFile, uint64(after), &n.at, fn))
}

// changed says of a log whose signed records are not there that it is another.
func changed(err error) error {
	if errors.Is(err, audit.ErrShorter) || errors.Is(err, audit.ErrRemoved) {
		return fmt.Errorf("%w: %w", ErrChanged, err)
	}
	return err
}

func (n *Notary) set(c Checkpoint) {
	n.mu.Lock()
	n.last = c
	n.mu.Unlock()
}

// Sign takes what is new into the tree and signs the tree if it grew. What is
// signed is on the disk first: a checkpoint never outlives its records, nor their
// hashes, which are all there is of those that retention removed.
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
	if err := errors.Join(n.tree.save(), n.tree.sync()); err != nil {
		return err
	}
	root, err := n.tree.root()
	if err != nil {
		return err
	}
	c := Checkpoint{Size: n.tree.size, Root: root, Time: n.cfg.Now()}
	msg, err := note.Sign(&note.Note{Text: c.text(n.signer)}, n.signer)
	if err != nil {
		return fmt.Errorf("signing a checkpoint: %w", err)
	}
	if err := writeWhole(filepath.Join(n.cfg.Dir, FileCheckpoint), msg, 0o644); err != nil {
		return fmt.Errorf("writing a checkpoint: %w", err)
	}
	if err := n.keepMark(msg); err != nil {
		return err
	}
	n.set(c)
	n.tree.prune() // the checkpoint before needed these
	return nil
}

// read takes the records behind those in the tree into it, up to limit in all
// (-1: all there are).
func (n *Notary) read(limit int64) error {
	return n.lines(n.tree.size, func(line []byte) (bool, error) {
		if limit >= 0 && n.tree.size >= limit {
			return false, nil
		}
		if seq, ok := audit.Sequence(line); !ok || seq != uint64(n.tree.size)+1 {
			return false, fmt.Errorf("%w: behind record %d does not come record %d", ErrChanged, n.tree.size, n.tree.size+1)
		}
		return true, n.tree.add(tlog.RecordHash(line))
	})
}

// Provable makes sure that records that are to be removed are the ones that were
// signed; it stays provable without them, by their hashes. It may be called while
// Run runs; when they are others, Healthy says so until they are right.
func (n *Notary) Provable(first, last uint64) error {
	err := n.compare(int64(first), int64(last))
	if errors.Is(err, errMovedOn) {
		return err
	}
	n.mu.Lock()
	n.spoilt = err
	n.mu.Unlock()
	return err
}

func (n *Notary) compare(first, last int64) error {
	c := n.Last()
	reader := treeReader(n.cfg.Dir, c)
	if reader == nil {
		return errMovedOn
	}
	next, err := compare(n.cfg.LogFile, &audit.Place{}, first, last, signedHashes(reader, c))
	if err == nil && next <= last {
		err = &BadRecord{next, "is not there"}
	}
	return changed(err)
}

func syncFile(path string) error {
	if err := onOpen(path, (*os.File).Sync); err != nil {
		return fmt.Errorf("syncing the decision log: %w", err)
	}
	return nil
}
