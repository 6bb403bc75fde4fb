package audit

import "fmt"

// Append writes r and sets its Seq and Time. When it returns nil the line is
// with the kernel: it survives the death of this process, though not yet that
// of the machine (see [Log.Run]). On an error the record is not in the log and
// what it would have granted must not happen; the next Append tries again.
// Records noted before are written first, so that numbers follow events.
//
// Appends that come while one is being written share the next write(2): one of
// them leads and writes for all.
func (l *Log) Append(r *Record) error {
	a := l.appends.Get().(*appending)
	defer l.appends.Put(a)
	if cap(a.body) > 64<<10 {
		a.body = nil // of a rare giant, not to be kept for each
	}
	r.Time = l.now().UTC().Round(0)
	var err error
	if a.body, err = appendRecord(a.body[:0], r, l.people); err != nil {
		return err
	}
	l.gmu.Lock()
	l.group = append(l.group, a)
	lead := !l.leading
	l.leading = true
	l.gmu.Unlock()
	if lead || <-a.told {
		l.writeGroup(a)
	}
	if a.err != nil {
		return fmt.Errorf("writing an audit record: %w", a.err)
	}
	r.Seq = a.seq
	return nil
}

// AppendDurable is Append that returns nil only when the line is on the disk:
// it survives the death of the machine. Those that wait at the same time share
// an fsync. An error may leave the record in the log; what it would have
// granted must not happen all the same.
func (l *Log) AppendDurable(r *Record) error {
	if err := l.Append(r); err != nil {
		return err
	}
	return l.syncTo(r.Seq)
}

// appending is an Append on its way. body is its own; seq and err are set
// before it is told.
type appending struct {
	body []byte
	told chan bool // capacity 1: false when it is done, true when it leads
	seq  uint64
	err  error
}

func newAppending() any { return &appending{told: make(chan bool, 1)} }

// writeGroup writes what waits, leader's record among it, tells everyone, and
// gives the lead to the first that came meanwhile.
func (l *Log) writeGroup(leader *appending) {
	l.mu.Lock()
	l.gmu.Lock()
	group := l.group
	l.group = l.spare
	l.gmu.Unlock()
	err := l.flush()
	for done := 0; done < len(group); {
		l.bodies = l.bodies[:0]
		for size := 0; done+len(l.bodies) < len(group); {
			body := group[done+len(l.bodies)].body
			if size += len(body); size > maxBatch && len(l.bodies) > 0 {
				break
			}
			l.bodies = append(l.bodies, body)
		}
		first, n := l.seq+1, 0
		if err == nil {
			n, err = l.commit(l.bodies)
		}
		for i := range l.bodies {
			a := group[done+i]
			a.seq, a.err = first+uint64(i), nil
			if i >= n {
				a.err = err
				l.denied++
			}
		}
		done += len(l.bodies)
	}
	clear(l.bodies)
	l.gmu.Lock()
	var next *appending
	if l.leading = len(l.group) > 0; l.leading {
		next = l.group[0]
	}
	l.gmu.Unlock()
	for i, a := range group {
		group[i] = nil
		if a != leader {
			a.told <- false
		}
	}
	l.spare = group[:0]
	l.mu.Unlock()
	if next != nil {
		next.told <- true
	}
}
