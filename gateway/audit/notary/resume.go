package notary

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/portvakt/portvakt/gateway/audit"
)

// resume goes on behind the last checkpoint. Tiles that are missing or wrong,
// as after a power failure, are made anew from the log; the log itself must then
// have the root that was signed.
func (n *Notary) resume() error {
	n.at = audit.Place{}
	mark, known, err := n.mark()
	if err != nil {
		return err
	}
	msg, err := os.ReadFile(filepath.Join(n.cfg.Dir, FileCheckpoint))
	if errors.Is(err, os.ErrNotExist) {
		return n.begin(mark, known)
	}
	if err != nil {
		return fmt.Errorf("reading the checkpoint: %w", err)
	}
	c, err := n.open(msg)
	if err != nil {
		return fmt.Errorf("%s: %w: restore it, or the key %s, from a backup, or, if there is none, %s", filepath.Join(n.cfg.Dir, FileCheckpoint), err, n.cfg.KeyFile, n.anew())
	}
	if c.Size < mark.Size {
		return fmt.Errorf("%w: %s is over %d records, and %d were signed: restore %s; or, if an older backup of it is all there is, remove %s",
			ErrChanged, filepath.Join(n.cfg.Dir, FileCheckpoint), c.Size, mark.Size, n.cfg.Dir, markOf(n.cfg.KeyFile))
	}
	reader, err := n.goOn(c)
	if err != nil {
		return err
	}
	if root, err := tlog.TreeHash(mark.Size, reader); known && (err != nil || mark.Size > 0 && root != mark.Root) {
		return errors.Join(err, fmt.Errorf("%w: its first %d records had another root when %s was signed", ErrChanged, mark.Size, markOf(n.cfg.KeyFile)))
	}
	if err := n.writeVerifier(); err != nil {
		return err
	}
	if !known || mark.Size < c.Size {
		if err := n.keepMark(msg); err != nil {
			return err
		}
	}
	n.set(c)
	return nil
}

// begin is the first start: nothing was signed, and nothing says otherwise.
func (n *Notary) begin(mark Checkpoint, known bool) error {
	gone := filepath.Join(n.cfg.Dir, FileCheckpoint)
	if mark.Size > 0 {
		return fmt.Errorf("%s is missing, and %d records were signed: restore %s from a backup; if there is none, copy %s to %s, and the tree is made anew from the log if that is the one that was signed",
			gone, mark.Size, n.cfg.Dir, markOf(n.cfg.KeyFile), gone)
	}
	first, err := audit.First(n.cfg.LogFile)
	if err != nil {
		return err
	}
	if first > 1 {
		return fmt.Errorf("the log begins with record %d, and the checkpoint that signed those before is gone: restore %s from a backup", first, n.cfg.Dir)
	}
	beside, err := n.evidence(known)
	if err != nil {
		return err
	}
	if beside != "" {
		return fmt.Errorf("%s is missing, and there is %s: restore %s from a backup, or, if there is none, %s", gone, beside, n.cfg.Dir, n.anew())
	}
	if err := n.writeVerifier(); err != nil {
		return err
	}
	if !known {
		if err := n.keepMark(nil); err != nil {
			return err
		}
	}
	return n.tree.clear()
}

// evidence names what says that something was signed although no checkpoint is
// there. Hashes alone say it only when there is no mark: they are written before
// the first checkpoint is.
func (n *Notary) evidence(marked bool) (string, error) {
	cosigned := filepath.Join(n.cfg.Dir, FileCosigned)
	if _, err := os.Lstat(cosigned); !errors.Is(err, os.ErrNotExist) {
		return cosigned, err
	}
	if marked {
		return "", nil
	}
	tiles := n.tree.top()
	if _, err := os.Lstat(tiles); !errors.Is(err, os.ErrNotExist) {
		return tiles, err
	}
	said := ""
	err := audit.Lines(n.cfg.LogFile, 0, &audit.Place{}, func([]byte) (bool, error) {
		said = fmt.Sprintf("a log with the key %s", n.cfg.KeyFile)
		return false, nil
	})
	return said, err
}

// goOn takes the tree of the checkpoint, and goes behind its last record. It
// returns who reads the signed hashes.
func (n *Notary) goOn(c Checkpoint) (tlog.HashReader, error) {
	if reader := treeReader(n.cfg.Dir, c); reader != nil && n.tree.load(c.Size) == nil {
		if err := n.find(c, reader); !errors.Is(err, errTile) {
			return reader, err
		}
		n.at = audit.Place{}
	}
	n.cfg.Log.Warn("the audit tree is damaged; making it anew from the decision log")
	if first, err := audit.First(n.cfg.LogFile); err != nil || first > 1 {
		return nil, errors.Join(err, fmt.Errorf("the audit tree is damaged, and the records before %d, which retention removed, are not there to make it anew: restore %s from a backup", first, n.cfg.Dir))
	}
	// What is left of the tree is evidence: it goes when it is superfluous.
	if err := n.holds(c); err != nil {
		return nil, err
	}
	if err := n.tree.clear(); err != nil {
		return nil, err
	}
	if err := n.read(c.Size); err != nil {
		return nil, err
	}
	if root, err := n.tree.root(); err != nil || root != c.Root {
		return nil, errors.Join(err, fmt.Errorf("%w: it was changed while it was read", ErrChanged))
	}
	return &n.tree, nil
}

// holds compares a whole log with what was signed, without its tree.
func (n *Notary) holds(c Checkpoint) error {
	tree := &rightEdge{}
	err := audit.Lines(n.cfg.LogFile, 0, &audit.Place{}, func(line []byte) (bool, error) {
		if tree.size == c.Size {
			return false, nil
		}
		tree.add(tlog.RecordHash(line))
		return true, nil
	})
	if err == nil && (tree.size != c.Size || tree.root() != c.Root) {
		err = fmt.Errorf("%w: its first %d records; run: portvakt-gateway audit verify", ErrChanged, c.Size)
	}
	return changed(err)
}

// find goes behind the last record that is signed. The file that it is in must
// hold what was signed from its beginning: a number alone is easily given to
// another record. (What is in the files before is for [Verify].)
func (n *Notary) find(c Checkpoint, reader tlog.HashReader) error {
	if c.Size == 0 {
		return nil
	}
	signed := signedHashes(reader, c)
	begin, err := audit.FileOf(n.cfg.LogFile, uint64(c.Size))
	if err != nil {
		return changed(err)
	}
	next, err := compare(n.cfg.LogFile, &n.at, int64(begin), c.Size, signed)
	if err == nil && next <= c.Size {
		err = fmt.Errorf("%w: record %d was signed and is not there", ErrChanged, next)
	}
	return changed(err)
}

// compare compares the records from first to last, at a place or wherever the
// first is, with what was signed. It returns the number of the first that was not
// compared; what is signed and cannot be read is errTile.
func compare(logFile string, at *audit.Place, first, last int64, signed func(int64) (tlog.Hash, error)) (next int64, err error) {
	next = first
	err = audit.Lines(logFile, uint64(first-1), at, func(line []byte) (bool, error) {
		if next > last {
			return false, nil
		}
		was, err := signed(next - 1)
		if err != nil {
			return false, errors.Join(errTile, err)
		}
		if tlog.RecordHash(line) != was {
			return false, fmt.Errorf("%w; run: portvakt-gateway audit verify", &BadRecord{next, "is not the one that was signed"})
		}
		next++
		return true, nil
	})
	return next, err
}

// writeVerifier shows the key that checks what is signed, to whoever does. It
// waits until the key is known to be the one of this tree: the one of another
// stays with what it signed.
func (n *Notary) writeVerifier() error {
	path, want := filepath.Join(n.cfg.Dir, FileVerifier), n.public+"\n"
	if was, err := os.ReadFile(path); err == nil && string(was) == want {
		return nil
	}
	if err := writeWhole(path, []byte(want), 0o644); err != nil {
		return fmt.Errorf("writing the verifier key: %w", err)
	}
	return nil
}
