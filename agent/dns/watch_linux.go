package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// watchFile hears of changes of resolv.conf.
func (m *Manager) watchFile(ctx context.Context, changed chan<- string) {
	if err := m.follow(ctx, changed); err != nil && ctx.Err() == nil {
		m.cfg.Log.Warn("changes of resolv.conf go unnoticed", "err", err)
	}
}

func (m *Manager) follow(ctx context.Context, changed chan<- string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	defer context.AfterFunc(ctx, func() { f.Close() })()
	w := &watch{fd: fd, path: m.path("etc/resolv.conf")}
	if err := w.renew(); err != nil {
		return err
	}
	tell(changed, "resolv.conf may have changed") // before it was watched
	buf := make([]byte, 16<<10)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return err
		}
		if w.concerned(buf[:n]) {
			if err := w.renew(); err != nil {
				return err
			}
			tell(changed, "resolv.conf was changed")
		}
	}
}

// watch is on every name on the way to a file: links, what they lead to, and the
// directories, any of which may be made anew or come later.
type watch struct {
	fd   int
	path string
	on   map[int32][]string // the names in each directory, by inotify's number of it
}

const (
	watched = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_CREATE | unix.IN_DELETE | unix.IN_ONLYDIR
	// maxNames bounds a way, and so links in a circle.
	maxNames = 100
	// maxRenewals bounds the looks at a way that changes all the time.
	maxRenewals = 100
)

// renew watches the way as it is now.
func (w *watch) renew() error {
	for range maxRenewals {
		way := wayTo(w.path)
		on := map[int32][]string{}
		var err error
		for dir, names := range way {
			n, err1 := unix.InotifyAddWatch(w.fd, dir, watched)
			if err1 != nil {
				err = errors.Join(err, fmt.Errorf("watching %s: %w", dir, err1))
				continue
			}
			on[int32(n)] = append(on[int32(n)], names...)
		}
		for n := range w.on {
			if _, stays := on[n]; !stays {
				_, _ = unix.InotifyRmWatch(w.fd, uint32(n)) // or it went with its directory
			}
		}
		w.on = on
		if !maps.EqualFunc(way, wayTo(w.path), slices.Equal) {
			continue // what changed before it was watched
		}
		return err
	}
	return errors.New("the way to the file changes all the time")
}

// wayTo lists the names that are looked up, in order, to open path, by the
// directory that each is looked up in. It ends at the first that is not there.
func wayTo(path string) map[string][]string {
	way := map[string][]string{}
	at, names := "/", split(path)
	for range maxNames {
		if len(names) == 0 {
			break
		}
		name := names[0]
		names = names[1:]
		if name == ".." {
			at = filepath.Dir(at)
			continue
		}
		way[at] = append(way[at], name)
		next := filepath.Join(at, name)
		info, err := os.Lstat(next)
		if err != nil {
			break
		}
		if info.Mode()&os.ModeSymlink == 0 {
			if !info.IsDir() {
				break
			}
			at = next
			continue
		}
		to, err := os.Readlink(next)
		if err != nil {
			break
		}
		if filepath.IsAbs(to) {
			at = "/"
		}
		names = slices.Concat(split(to), names)
	}
	return way
}

func split(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(s string) bool { return s == "" || s == "." })
}

// concerned reads inotify(7) events and says whether one is of the way.
func (w *watch) concerned(b []byte) bool {
	for len(b) >= unix.SizeofInotifyEvent {
		n := int32(binary.NativeEndian.Uint32(b))
		kind := binary.NativeEndian.Uint32(b[4:])
		size := int(binary.NativeEndian.Uint32(b[12:]))
		b = b[unix.SizeofInotifyEvent:]
		if size > len(b) || kind&unix.IN_Q_OVERFLOW != 0 {
			return true // events were lost, or cannot be read: then rather look
		}
		name, _, _ := strings.Cut(string(b[:size]), "\x00")
		if slices.Contains(w.on[n], name) {
			return true
		}
		b = b[size:]
	}
	return false
}
