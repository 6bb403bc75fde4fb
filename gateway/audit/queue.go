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
	maxRefusals   = maxNotes / 2 // beyond, refusals are folded: room is left for what an administrator does
	maxNotesBytes = 16 << 20
	maxBatch      = 1 << 20 // bytes that one write(2) carries
)

// Note records r without ever waiting for the disk. Run or the next Append
// writes it; r.Time is the moment of the call. When the queue is full, because
// the log cannot be written, the record is lost and counted.
func (l *Log) Note(r Record) {
	if !l.note(&r, maxNotes) {
		l.qmu.Lock()
		l.queue.lose(r.Kind, r.Time)
		l.qmu.Unlock()
		l.lost.Add(1)
	}
}

// NoteEnd is Note for the end of what an earlier Append let begin: a flow's, a
// session's. There is always room for it. That is bounded because nothing
// begins while the queue cannot be written: what can wait is at most the ends
// of what is open.
func (l *Log) NoteEnd(r Record) {
	if !l.note(&r, 0) {
		l.Note(r) // it cannot be encoded at all, and is counted
	}
}

// noteIfRoom is Note for a refusal; whoever calls it folds what finds no room.
func (l *Log) noteIfRoom(r *Record) bool { return l.note(r, maxRefusals) }

// note queues r unless limit records with a limit wait already; zero stands
// for no limit.
func (l *Log) note(r *Record, limit int) bool {
	r.Time = l.now().UTC().Round(0)
	if limit > 0 {
		l.qmu.Lock()
		full := l.queue.full(limit)
		l.qmu.Unlock()
		if full {
			return false // before it costs anything
		}
	} else if l.crowded() && r.Input != nil {
		// Ten thousand ends may wait at once; their Inputs need not.
		r.Input, r.InputCompact = cutInput(r.Input), true
	}
	body, err := appendRecord(make([]byte, 0, 512+2*len(r.Input)), r, l.people)
	if err != nil {
		// The fact that it happened matters more than the part that cannot be
		// written.
		l.log.Error("noting an audit record", "err", err)
		d := map[string]string{}
		maps.Copy(d, r.Detail)
		d["error"] = err.Error()
		r.Input, r.Detail = nil, d
		if r.Kind == "" {
			r.Kind = KindAdmin
		}
		if body, err = appendRecord(nil, r, l.people); err != nil {
			return false
		}
	}
	l.qmu.Lock()
	pushed := l.queue.push(note{body, limit > 0}, limit)
	l.qmu.Unlock()
	if pushed {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	return pushed
}

func (l *Log) crowded() bool {
	l.qmu.Lock()
	defer l.qmu.Unlock()
	return l.queue.bytes > maxNotesBytes
}

// queue holds noted records until they are written, and the count of those it
// had no room for. Its owner's qmu guards it.
type queue struct {
	notes   []note
	bytes   int // of all notes
	limited int // how many of them have a limit
	room    int // their bytes
	lost    losses
}

// note is one noted record, encoded.
type note struct {
	body    []byte
	limited bool // it found room among those with a limit
}

// losses counts records that were lost and not yet recorded as lost.
type losses struct {
	count       uint64
	kinds       map[Kind]uint64
	first, last time.Time
}

func (q *queue) empty() bool { return len(q.notes) == 0 && q.lost.count == 0 }

// full tells whether the next note with that limit has no room.
func (q *queue) full(limit int) bool { return q.limited >= limit || q.room >= maxNotesBytes }

// push appends a note and tells whether there was room. When there is none the
// newest is lost: the queue then still tells how the trouble began.
func (q *queue) push(n note, limit int) bool {
	if n.limited {
		if q.limited >= limit || q.room+len(n.body) > maxNotesBytes {
			return false
		}
		q.limited++
		q.room += len(n.body)
	}
	q.notes = append(q.notes, n)
	q.bytes += len(n.body)
	return true
}

// batch returns the bodies of the first notes, as many as fit one write but at
// least one, at most n. They stay queued until drop.
func (q *queue) batch(n int) [][]byte {
	var bodies [][]byte
	for size := 0; len(bodies) < n; {
		body := q.notes[len(bodies)].body
		if size += len(body); size > maxBatch && len(bodies) > 0 {
			break
		}
		bodies = append(bodies, body)
	}
	return bodies
}

// drop removes the first n notes.
func (q *queue) drop(n int) {
	for _, note := range q.notes[:n] {
		q.bytes -= len(note.body)
		if note.limited {
			q.limited--
			q.room -= len(note.body)
		}
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
