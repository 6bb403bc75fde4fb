package audit

import (
	"maps"
	"slices"
	"strconv"
	"time"
)

// Bounds of the queue of noted records.
const (
	maxNotes      = 4096
	maxNotesBytes = 16 << 20
	maxBatch      = 1 << 20 // bytes that one write(2) carries
)

// queue holds noted records, encoded, until they are written, and the count of
// those it had no room for. Its owner's qmu guards it.
type queue struct {
	notes [][]byte
	bytes int
	lost  losses
}

// losses counts records that were lost and not yet recorded as lost.
type losses struct {
	count       uint64
	kinds       map[Kind]uint64
	first, last time.Time
}

func (q *queue) empty() bool { return len(q.notes) == 0 && q.lost.count == 0 }

// push appends a note and tells whether there was room. When there is none the
// newest is lost: the queue then still tells how the trouble began.
func (q *queue) push(body []byte) bool {
	if len(q.notes) >= maxNotes || q.bytes+len(body) > maxNotesBytes {
		return false
	}
	q.notes = append(q.notes, body)
	q.bytes += len(body)
	return true
}

// batch returns a copy of the first notes, as many as fit one write but at
// least one, at most n. They stay queued until drop.
func (q *queue) batch(n int) [][]byte {
	size, k := 0, 0
	for k < n && (k == 0 || size+len(q.notes[k]) <= maxBatch) {
		size += len(q.notes[k])
		k++
	}
	return slices.Clone(q.notes[:k])
}

// drop removes the first n notes.
func (q *queue) drop(n int) {
	for _, b := range q.notes[:n] {
		q.bytes -= len(b)
	}
	q.notes = slices.Delete(q.notes, 0, n)
}

func (q *queue) lose(k Kind, at time.Time) {
	if q.lost.count == 0 {
		q.lost.first = at
		q.lost.kinds = map[Kind]uint64{}
	}
	q.lost.count++
	// A copy: a snapshot of losses may be in the hands of who records it.
	q.lost.kinds = maps.Clone(q.lost.kinds)
	if _, known := q.lost.kinds[k]; known || len(q.lost.kinds) < MaxDetail-3 {
		q.lost.kinds[k]++
	}
	q.lost.last = at
}

// told forgets the losses that were recorded; later ones stay.
func (q *queue) told(done losses) {
	if q.lost.count == done.count {
		q.lost = losses{}
		return
	}
	q.lost.count -= done.count
	q.lost.first = done.last
	q.lost.kinds = maps.Clone(q.lost.kinds)
	for k, n := range done.kinds {
		if q.lost.kinds[k] -= n; q.lost.kinds[k] == 0 {
			delete(q.lost.kinds, k)
		}
	}
}

// detail is what a record of kind lost says.
func (l losses) detail() map[string]string {
	d := map[string]string{
		"count": strconv.FormatUint(l.count, 10),
		"first": l.first.Format(time.RFC3339Nano),
		"last":  l.last.Format(time.RFC3339Nano),
	}
	for k, n := range l.kinds {
		d["kind."+string(k)] = strconv.FormatUint(n, 10)
	}
	return d
}
