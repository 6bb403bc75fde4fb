package notary

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Report is what Verify found in a log that holds.
type Report struct {
	Records  int64 // in the file
	Signed   int64 // of them, by the checkpoint; the rest is newer than it
	Earlier  int   // checkpoints kept elsewhere that hold as well
	Signing  Checkpoint
	Verifier string // the name and hash of the key, as checkpoints show it
}

// BadRecord is a record that is not the one that was signed.
type BadRecord struct {
	Seq  int64
	What string
}

// Error names the record.
func (e *BadRecord) Error() string { return fmt.Sprintf("record %d %s", e.Seq, e.What) }

// Is makes every BadRecord an [ErrChanged].
func (e *BadRecord) Is(target error) bool { return target == ErrChanged }

// Verify reads a whole log and checks it against the checkpoint in dir, and
// against every earlier checkpoint that somebody kept. It needs no gateway. A
// log that is not the signed one is an error that is [ErrChanged], if possible
// a *[BadRecord] that names the first record that differs.
func Verify(logFile, dir string, v note.Verifier, earlier ...[]byte) (Report, error) {
	rep := Report{Verifier: fmt.Sprintf("%s+%08x", v.Name(), v.KeyHash())}
	msg, err := os.ReadFile(filepath.Join(dir, FileCheckpoint))
	if err != nil {
		return rep, fmt.Errorf("reading the checkpoint: %w", err)
	}
	now, err := OpenCheckpoint(msg, v)
	if err != nil {
		return rep, err
	}
	rep.Signing, rep.Signed = now, now.Size
	want := map[int64]tlog.Hash{now.Size: now.Root}
	for i, msg := range earlier {
		c, err := OpenCheckpoint(msg, v)
		if err != nil {
			return rep, fmt.Errorf("earlier checkpoint %d: %w", i+1, err)
		}
		if was, ok := want[c.Size]; ok && was != c.Root {
			return rep, fmt.Errorf("%w: two checkpoints over %d records have different roots, both signed with this key", ErrChanged, c.Size)
		}
		if c.Size > now.Size {
			return rep, fmt.Errorf("%w: a checkpoint over %d records was signed, the log's own one is over %d", ErrChanged, c.Size, now.Size)
		}
		want[c.Size] = c.Root
	}
	rep.Records, err = walk(logFile, dir, now, want)
	if err == nil {
		rep.Earlier = len(earlier)
	}
	return rep, err
}

// walk computes the tree of a log and compares its root at every size wanted.
func walk(logFile, dir string, now Checkpoint, want map[int64]tlog.Hash) (int64, error) {
	f, err := os.Open(logFile)
	if err != nil {
		return 0, fmt.Errorf("reading the decision log: %w", err)
	}
	defer f.Close()
	signed := signedHashes(dir, now)
	tree := &rightEdge{}
	check := func() error {
		root, ok := want[tree.size]
		if !ok || root == tree.root() {
			return nil
		}
		return fmt.Errorf("%w: the first %d records have another root than was signed; the tree beside the log is damaged, so which of them differs cannot be said", ErrChanged, tree.size)
	}
	if err := check(); err != nil {
		return 0, err
	}
	err = lines(f, func(line []byte) (bool, error) {
		n := tree.size + 1
		h := tlog.RecordHash(line)
		seq, ok := sequence(line)
		switch {
		case !ok:
			return false, &BadRecord{n, "is no record: " + clip(line)}
		case seq != n:
			return false, &BadRecord{n, fmt.Sprintf("is missing; in its place is record %d", seq)}
		case signed != nil && n <= now.Size:
			was, err := signed(n - 1)
			if err != nil {
				return false, err
			}
			if h != was {
				return false, &BadRecord{n, "is not the one that was signed"}
			}
		}
		tree.add(h)
		return true, check()
	})
	if err != nil {
		return tree.size, err
	}
	if tree.size < now.Size {
		return tree.size, &BadRecord{tree.size + 1, fmt.Sprintf("is missing: %d records were signed, the log ends before", now.Size)}
	}
	return tree.size, nil
}

// signedHashes returns a function that reads the hash of record i (from 0) as it
// was signed, or nil when the tree beside the log is not the signed one.
func signedHashes(dir string, c Checkpoint) func(i int64) (tlog.Hash, error) {
	t := &tiles{dir: dir}
	if t.load(c.Size) != nil {
		return nil
	}
	if root, err := t.root(); err != nil || root != c.Root {
		return nil
	}
	// The root proves the edge. Each full tile below it is proven when it is
	// first read, through the tiles above.
	r := tlog.TileHashReader(tlog.Tree{N: c.Size, Hash: c.Root}, &tileReader{t})
	var tile []tlog.Hash
	first := int64(-1)
	return func(i int64) (tlog.Hash, error) {
		if first < 0 || i < first || i >= first+int64(len(tile)) {
			first = i &^ (tileWidth - 1)
			var indexes []int64
			for j := first; j < min(first+tileWidth, c.Size); j++ {
				indexes = append(indexes, tlog.StoredHashIndex(0, j))
			}
			var err error
			if tile, err = r.ReadHashes(indexes); err != nil {
				return tlog.Hash{}, fmt.Errorf("%w: the tree beside the log is damaged at records %d to %d: %w", ErrChanged, first+1, min(first+tileWidth, c.Size), err)
			}
		}
		return tile[i-first], nil
	}
}

// tileReader gives tiles to tlog, which proves them.
type tileReader struct{ t *tiles }

func (r *tileReader) Height() int { return tileHeight }

func (r *tileReader) ReadTiles(ts []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(ts))
	for i, t := range ts {
		data, err := r.t.data(t)
		if err != nil {
			return nil, err
		}
		if len(data) < t.W*tlog.HashSize {
			return nil, errTile
		}
		out[i] = data[:t.W*tlog.HashSize]
	}
	return out, nil
}

func (r *tileReader) SaveTiles([]tlog.Tile, [][]byte) {}

// rightEdge is all that is needed of a tree to add to it and to know its root:
// one hash for each perfect subtree, the largest first.
type rightEdge struct {
	size  int64
	peaks []tlog.Hash
}

func (e *rightEdge) add(h tlog.Hash) {
	for n := e.size; n&1 == 1; n >>= 1 {
		h = tlog.NodeHash(e.peaks[len(e.peaks)-1], h)
		e.peaks = e.peaks[:len(e.peaks)-1]
	}
	e.peaks = append(e.peaks, h)
	e.size++
}

func (e *rightEdge) root() tlog.Hash {
	if e.size == 0 {
		h, _ := tlog.TreeHash(0, nil) // of nothing: no reader is asked
		return h
	}
	h := e.peaks[len(e.peaks)-1]
	for i := len(e.peaks) - 2; i >= 0; i-- {
		h = tlog.NodeHash(e.peaks[i], h)
	}
	return h
}

// Proof shows that one record is in the log that a checkpoint signs. It stands
// by itself: with the verifier key, nothing else is needed to check it.
type Proof struct {
	Record     string   `json:"record"`     // the line, without its newline
	Seq        int64    `json:"seq"`        // its number; its leaf is Seq-1
	Checkpoint string   `json:"checkpoint"` // the signed note
	Hashes     []string `json:"hashes"`     // RFC 6962, section 2.1.1, in base64, leaf to root
}

// ErrNotFound says that no record has the ID asked for.
var ErrNotFound = errors.New("no record has that decision ID or number")

// ErrUnsigned says that a record is newer than the latest checkpoint.
var ErrUnsigned = errors.New("the record is not signed yet; try again in some seconds")

// Prove makes the Proof of the first record that match picks.
func Prove(logFile, dir string, v note.Verifier, match func(line []byte) bool) (Proof, error) {
	msg, err := os.ReadFile(filepath.Join(dir, FileCheckpoint))
	if err != nil {
		return Proof{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	c, err := OpenCheckpoint(msg, v)
	if err != nil {
		return Proof{}, err
	}
	f, err := os.Open(logFile)
	if err != nil {
		return Proof{}, fmt.Errorf("reading the decision log: %w", err)
	}
	defer f.Close()
	p := Proof{Checkpoint: string(msg)}
	if err := lines(f, func(line []byte) (bool, error) {
		if !match(line) {
			return true, nil
		}
		p.Record = string(line)
		p.Seq, _ = sequence(line)
		return false, nil
	}); err != nil {
		return Proof{}, err
	}
	switch {
	case p.Seq == 0:
		return Proof{}, ErrNotFound
	case p.Seq > c.Size:
		return Proof{}, ErrUnsigned
	}
	t := &tiles{dir: dir}
	if err := t.load(c.Size); err != nil {
		return Proof{}, err
	}
	hashes, err := tlog.ProveRecord(c.Size, p.Seq-1, tlog.TileHashReader(tlog.Tree{N: c.Size, Hash: c.Root}, &tileReader{t}))
	if err != nil {
		return Proof{}, fmt.Errorf("proving record %d: %w", p.Seq, err)
	}
	for _, h := range hashes {
		p.Hashes = append(p.Hashes, h.String())
	}
	if _, err := CheckProof(p, v); err != nil {
		return Proof{}, err
	}
	return p, nil
}

// ReadProof reads a Proof as JSON, strictly.
func ReadProof(r io.Reader) (Proof, error) {
	var p Proof
	d := json.NewDecoder(io.LimitReader(r, 32<<20))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return Proof{}, fmt.Errorf("reading the proof: %w", err)
	}
	return p, nil
}

// CheckProof checks a Proof and returns the checkpoint it is of.
func CheckProof(p Proof, v note.Verifier) (Checkpoint, error) {
	c, err := OpenCheckpoint([]byte(p.Checkpoint), v)
	if err != nil {
		return Checkpoint{}, err
	}
	if seq, ok := sequence([]byte(p.Record)); !ok || seq != p.Seq || seq > c.Size {
		return Checkpoint{}, fmt.Errorf("%w: the proof is of record %d, the line in it is another", ErrChanged, p.Seq)
	}
	var hashes tlog.RecordProof
	for _, s := range p.Hashes {
		h, err := tlog.ParseHash(s)
		if err != nil {
			return Checkpoint{}, fmt.Errorf("reading the proof: %w", err)
		}
		hashes = append(hashes, h)
	}
	if err := tlog.CheckRecord(hashes, c.Size, c.Root, p.Seq-1, tlog.RecordHash([]byte(p.Record))); err != nil {
		return Checkpoint{}, fmt.Errorf("%w: record %d is not in the log the checkpoint signs", ErrChanged, p.Seq)
	}
	return c, nil
}

func clip(b []byte) string {
	if len(b) > 80 {
		b = b[:80]
	}
	return fmt.Sprintf("%q", b)
}
