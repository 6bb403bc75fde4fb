package notary

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/portvakt/portvakt/gateway/audit"
)

// Report is what Verify found in a log that holds.
type Report struct {
	First    int64 // the first record that is there: those before were removed, as retention does
	Records  int64 // that are there
	Signed   int64 // the last one that the checkpoint signs; the rest is newer than it
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
	now, _, reader, err := latest(dir, v)
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
	first, err := audit.First(logFile)
	if err != nil {
		return rep, err
	}
	rep.First = int64(first)
	if rep.Records, err = walk(logFile, reader, rep.First-1, now, want); err != nil {
		return rep, err
	}
	unended, err := audit.Unended(logFile)
	if err != nil {
		return rep, err
	}
	if unended != "" {
		return rep, fmt.Errorf("%w: behind the last record of %s stands something else", ErrChanged, unended)
	}
	rep.Earlier = len(earlier)
	return rep, nil
}

// latest reads the checkpoint of a tree and, if they are the signed ones, gives the
// tree's hashes; otherwise the reader is nil. A gateway that signs meanwhile removes
// hashes that only the checkpoint before needed, so they are asked of the next.
func latest(dir string, v note.Verifier) (c Checkpoint, msg []byte, reader tlog.HashReader, err error) {
	for {
		before := msg
		if msg, err = os.ReadFile(filepath.Join(dir, FileCheckpoint)); err != nil {
			return c, nil, nil, fmt.Errorf("reading the checkpoint: %w", err)
		}
		if c, err = OpenCheckpoint(msg, v); err != nil {
			return c, nil, nil, err
		}
		if reader = treeReader(dir, c); reader != nil || bytes.Equal(msg, before) {
			return c, msg, reader, nil
		}
	}
}

// walk computes the tree of a log and compares its root at every size wanted.
// The records up to removed are not there any more: what the tree beside the log
// says of them counts, because only the true hashes lead to the signed root.
func walk(logFile string, reader tlog.HashReader, removed int64, now Checkpoint, want map[int64]tlog.Hash) (int64, error) {
	tree := &rightEdge{}
	if removed > 0 {
		if reader == nil || removed > now.Size {
			return 0, fmt.Errorf("%w: the records before %d were removed, and the tree beside the log is not the signed one, so nothing can be said of them", ErrChanged, removed+1)
		}
		var err error
		if tree, err = edgeOf(removed, reader); err != nil {
			return 0, err
		}
		for size, root := range want {
			if was, err := tlog.TreeHash(size, reader); size < removed && (err != nil || was != root) {
				return 0, fmt.Errorf("%w: the first %d records, which were removed, had another root than was signed then", errors.Join(ErrChanged, err), size)
			}
		}
	}
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
	signed := signedHashes(reader, now)
	told := int64(0) // up to where signed records say that retention removed
	err := audit.Lines(logFile, uint64(removed), &audit.Place{}, func(line []byte) (bool, error) {
		n := tree.size + 1
		h := tlog.RecordHash(line)
		seq, ok := audit.Sequence(line)
		switch {
		case !ok:
			return false, &BadRecord{n, "is no record: " + clip(line)}
		case seq != uint64(n):
			return false, &BadRecord{n, fmt.Sprintf("is missing; in its place is record %d", seq)}
		case signed != nil && n <= now.Size:
			was, err := signed(n - 1)
			if err != nil {
				return false, err
			}
			if h != was {
				return false, &BadRecord{n, "is not the one that was signed"}
			}
			told = max(told, removedUpTo(line))
		}
		tree.add(h)
		return true, check()
	})
	if errors.Is(err, audit.ErrLineTooLong) {
		err = &BadRecord{tree.size + 1, "is no record: " + err.Error()}
	}
	if err != nil {
		return tree.size - removed, err
	}
	if tree.size < now.Size {
		return tree.size - removed, &BadRecord{tree.size + 1, fmt.Sprintf("is missing: %d records were signed, the log ends before", now.Size)}
	}
	if told < removed {
		return tree.size - removed, fmt.Errorf("%w: the log begins with record %d, and no signed record says that retention removed those before", ErrChanged, removed+1)
	}
	return tree.size - removed, nil
}

// removedUpTo is the number of the last record that retention was about to
// remove, if a line says such a thing.
func removedUpTo(line []byte) int64 {
	if !bytes.Contains(line, []byte(`"kind":"erase","actor":"retention"`)) {
		return 0
	}
	var r audit.Record
	if json.Unmarshal(line, &r) != nil || r.Kind != audit.KindErase || r.Actor != "retention" {
		return 0
	}
	to, err := strconv.ParseInt(r.Detail["to"], 10, 64)
	if err != nil {
		return 0
	}
	return to
}

// treeReader reads hashes of the tree beside the log, each proven to belong to
// the signed root, or is nil when that tree is not the signed one.
func treeReader(dir string, c Checkpoint) tlog.HashReader {
	t := &tiles{dir: dir}
	if t.load(c.Size) != nil {
		return nil
	}
	if root, err := t.root(); err != nil || root != c.Root {
		return nil
	}
	// The root proves the edge. Each full tile below it is proven when it is
	// first read, through the tiles above.
	return tlog.TileHashReader(tlog.Tree{N: c.Size, Hash: c.Root}, &tileReader{t})
}

// edgeOf is the right edge of the tree over the first size records.
func edgeOf(size int64, r tlog.HashReader) (*rightEdge, error) {
	var indexes []int64
	for level := 62; level >= 0; level-- {
		if size>>level&1 == 1 {
			indexes = append(indexes, tlog.StoredHashIndex(level, size>>level-1))
		}
	}
	peaks, err := r.ReadHashes(indexes)
	if err != nil {
		return nil, fmt.Errorf("%w: the tree beside the log is damaged where records were removed: %w", ErrChanged, err)
	}
	return &rightEdge{size: size, peaks: peaks}, nil
}

// signedHashes returns a function that reads the hash of record i (from 0) as it
// was signed, or nil without a tree.
func signedHashes(r tlog.HashReader, c Checkpoint) func(i int64) (tlog.Hash, error) {
	if r == nil {
		return nil
	}
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
var ErrNotFound = errors.New(audit.NotFound)

// ErrUnsigned says that a record is newer than the latest checkpoint.
var ErrUnsigned = errors.New("the record is not signed yet; try again in some seconds")

// Prove makes the Proof of the first record that match picks.
func Prove(logFile, dir string, v note.Verifier, match func(line []byte) bool) (Proof, error) {
	var p Proof
	first, err := audit.First(logFile)
	if err != nil {
		return Proof{}, err
	}
	if err := audit.Lines(logFile, first-1, &audit.Place{}, func(line []byte) (bool, error) {
		if !match(line) {
			return true, nil
		}
		p.Record = string(line)
		seq, _ := audit.Sequence(line)
		p.Seq = int64(seq)
		return false, nil
	}); err != nil {
		return Proof{}, err
	}
	if p.Seq == 0 {
		return Proof{}, ErrNotFound
	}
	c, msg, reader, err := latest(dir, v) // only now: reading a long log takes a while
	switch {
	case err != nil:
		return Proof{}, err
	case p.Seq > c.Size:
		return Proof{}, ErrUnsigned
	case reader == nil:
		return Proof{}, fmt.Errorf("proving record %d: the tree in %s is not the one that was signed; run: portvakt-gateway audit verify", p.Seq, dir)
	}
	p.Checkpoint = string(msg)
	hashes, err := tlog.ProveRecord(c.Size, p.Seq-1, reader)
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
	if seq, ok := audit.Sequence([]byte(p.Record)); !ok || seq != uint64(p.Seq) || p.Seq > c.Size {
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
