package policy

import (
	"context"
	"crypto/sha256"
	"time"
)

// DefaultInterval is how often a Source looks at its directory. A change is in
// force after two looks and a compilation, well within a second.
const DefaultInterval = 250 * time.Millisecond

// young is the age below which a file may change again without its time stamp
// showing it: some file systems count whole seconds, or two.
const young = 2 * time.Second

// Source follows a policy directory. It looks, rather than being told by the
// operating system, because that works on every file system, through symbolic
// links and for a directory that does not exist yet.
type Source struct {
	Dir      string
	Load     LoadOptions
	Interval time.Duration    // 0: DefaultInterval
	Now      func() time.Time // nil: time.Now; compared with files' time stamps
}

// look is what a Source knows of its directory. Only Run's goroutine has it.
type look struct {
	first   bool
	seen    string // fingerprint of the look before
	loaded  string // fingerprint of what was loaded last
	again   bool   // loaded was young or could not be read: read it again
	content [sha256.Size]byte
	id      string // of the Revision reported last, while no error was reported since
	said    string // the error reported last
}

// Run loads the directory at once and whenever it has changed and been still
// for one Interval, until ctx ends; then it returns nil. It calls back, from
// its own goroutine, with
//
//   - a Revision at the first load, when the ID changed, and when a load
//     succeeds after an error;
//   - an error, once until it changes or is mended. The caller keeps the last
//     good Revision in force.
func (s *Source) Run(ctx context.Context, report func(*Revision, error)) error {
	interval := s.Interval
	if interval <= 0 {
		interval = DefaultInterval
	}
	l := look{first: true}
	s.step(&l, report)
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			s.step(&l, report)
		}
	}
}

func (s *Source) step(l *look, report func(*Revision, error)) {
	now, youngest := s.now(), time.Time{}
	var sum string
	sum, youngest = fingerprint(s.Dir)
	still := sum == l.seen
	l.seen = sum
	switch {
	case l.first:
	case !still: // half-written files are left to settle
		return
	case sum == l.loaded && !l.again:
		return
	}
	files, err := readDir(s.Dir, s.Load.CheckOwner)
	if after, _ := fingerprint(s.Dir); after != sum {
		l.seen = after // what was read is not what was looked at
		return
	}
	reread := sum == l.loaded
	l.first, l.loaded, l.again = false, sum, now.Sub(youngest).Abs() < young
	if err != nil {
		l.again = true // its end may not show in a look: access lists, a disk
	} else {
		content := hashFiles(files)
		if reread && content == l.content && l.said == "" {
			return
		}
		l.content = content
		var r *Revision
		if r, err = build(files, s.Load); err == nil {
			if r.id != l.id {
				l.id, l.said = r.id, ""
				report(r, nil)
			}
			return
		}
	}
	if err.Error() != l.said {
		l.id, l.said = "", err.Error()
		report(nil, err)
	}
}

func (s *Source) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func hashFiles(files []sourceFile) [sha256.Size]byte {
	h := sha256.New()
	for _, f := range files {
		n, d := sha256.Sum256([]byte(f.name)), sha256.Sum256(f.data)
		h.Write(n[:])
		h.Write(d[:])
	}
	return [sha256.Size]byte(h.Sum(nil))
}
