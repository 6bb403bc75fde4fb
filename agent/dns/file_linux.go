package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// The lines that are put into resolv.conf stand between these two.
const (
	beginMark = "# portvakt begin: the apps' names; the file as it was is beside it in resolv.conf.portvakt"
	endMark   = "# portvakt end"
)

// maxResolvConf bounds what is read; resolv.conf(5) is a few lines.
const maxResolvConf = 64 << 10

// ownFiles says whether /etc/resolv.conf belongs to this network namespace:
// a namespace of `ip netns` that has none of its own shares the machine's.
func (m *Manager) ownFiles() error {
	if m.cfg.Root != "/" {
		return nil
	}
	if sameNetwork(1) {
		return nil
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && (f[4] == "/etc/resolv.conf" || f[4] == "/etc") {
			return nil
		}
	}
	return errors.New("this network namespace shares /etc/resolv.conf with another one; give it one of its own (/etc/netns/NAME/resolv.conf)")
}

// resolvConf is the file. Where it is a link, what it leads to is written.
type resolvConf struct {
	m       *Manager
	written []byte // by set; nil before
}

func (*resolvConf) name() string { return ResolvConf }

func (r *resolvConf) file() string   { return r.m.path("etc/resolv.conf") }
func (r *resolvConf) backup() string { return r.m.path("etc/resolv.conf.portvakt") }

// ofMark begins the backup's first line, which names the file that was written:
// the link may lead elsewhere by the time it is put back.
const ofMark = "# portvakt: as it was in "

// saved is the backup. of is empty when it does not say, as former versions' do
// not.
type saved struct {
	of   string
	text []byte
}

// readBackup returns nil when there is none.
func (r *resolvConf) readBackup() (*saved, error) {
	text, _, err := readFile(r.backup())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := &saved{text: text}
	if line, rest, ok := bytes.Cut(text, []byte("\n")); ok {
		if of, ok := bytes.CutPrefix(line, []byte(ofMark)); ok && filepath.IsAbs(string(of)) {
			s.of, s.text = string(of), rest
		}
	}
	return s, nil
}

// set writes the backup first: from then on a crash is undone by Recover.
func (r *resolvConf) set(_ context.Context, s Setting) error {
	to, err := filepath.EvalSymlinks(r.file())
	if err != nil {
		return err
	}
	old, err := r.readBackup()
	if err != nil {
		return err
	}
	if old != nil && old.of != "" && old.of != to {
		// The link leads elsewhere by now; it may lead back.
		if err := old.restore(old.of); err != nil {
			return err
		}
		old = nil
	}
	text, mode, err := readFile(to)
	if err != nil {
		return err
	}
	base, ours := strip(text)
	if !bytes.Equal(text, r.written) && (old == nil || old.of == "" || !ours || !restored(base, old.text)) {
		// Another program's new file, or an old one of ours that it changed.
		if ours && old != nil && restored(base, old.text) {
			base = old.text
		}
		if err := replace(r.backup(), slices.Concat([]byte(ofMark+to+"\n"), base), mode); err != nil {
			return err
		}
	}
	next := compose(base, s)
	if !bytes.Equal(next, text) {
		if err := replace(to, next, mode); err != nil {
			return err
		}
	}
	r.written = next
	return nil
}

// holds says whether the file is as it was written.
func (r *resolvConf) holds() bool {
	text, _, err := readFile(r.file())
	return err == nil && bytes.Equal(text, r.written)
}

// ours says whether the file has lines of ours.
func (r *resolvConf) ours() bool {
	text, _, err := readFile(r.file())
	_, ours := strip(text)
	return err == nil && ours
}

// undo takes our lines out, where they were written and where the name leads to
// now. If nothing else changed, that is the backup, byte for byte.
func (r *resolvConf) undo(context.Context) error {
	r.written = nil
	old, err := r.readBackup()
	if err != nil {
		return err
	}
	kept := old != nil
	if !kept {
		old = &saved{}
	}
	if old.of != "" {
		if err := old.restore(old.of); err != nil {
			return err
		}
	}
	if err := old.restore(r.file()); err != nil || !kept {
		return err
	}
	return os.Remove(r.backup())
}

// restore takes our lines out of one file. One without them is another
// program's by now, and so is one that is gone.
func (s *saved) restore(path string) error {
	text, mode, err := readFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	base, ours := strip(text)
	if !ours {
		return nil
	}
	if restored(base, s.text) {
		base = s.text
	}
	return replace(path, base, mode)
}

// restored says whether base is what compose left of the backup.
func restored(base, backup []byte) bool {
	return bytes.Equal(base, backup) || bytes.Equal(base, withoutRotate(backup))
}

// compose puts the gateway's server in front. Only one, since glibc takes
// three in all (resolv.conf(5), MAXNS).
func compose(base []byte, s Setting) []byte {
	servers := slices.Clone(s.Servers)
	slices.SortFunc(servers, netip.Addr.Compare) // IPv4 first
	if len(servers) == 0 || len(s.Domains) == 0 {
		return base
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nnameserver %s\n%s\n", beginMark, servers[0], endMark)
	b.Write(withoutRotate(base))
	return b.Bytes()
}

// withoutRotate leaves the option out that would ask our server and the others
// by turns.
func withoutRotate(base []byte) []byte {
	var b bytes.Buffer
	for line := range strings.Lines(string(base)) {
		f := strings.Fields(line)
		if len(f) > 1 && f[0] == "options" && slices.Contains(f, "rotate") {
			f = slices.DeleteFunc(f, func(s string) bool { return s == "rotate" })
			line = strings.Join(f, " ") + "\n"
			if len(f) == 1 {
				line = ""
			}
		}
		b.WriteString(line)
	}
	return b.Bytes()
}

// strip takes our lines out, wherever they are by now.
func strip(text []byte) (base []byte, ours bool) {
	var b bytes.Buffer
	within := false
	for line := range strings.Lines(string(text)) {
		switch strings.TrimRight(line, "\n") {
		case beginMark:
			within, ours = true, true
			continue
		case endMark:
			if within {
				within = false
				continue
			}
		}
		if within && strings.HasPrefix(line, "nameserver ") {
			continue
		}
		within = false // somebody wrote between our lines
		b.WriteString(line)
	}
	return b.Bytes(), ours
}

func readFile(path string) ([]byte, os.FileMode, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxResolvConf {
		return nil, 0, fmt.Errorf("%s is no file of at most %d bytes", path, maxResolvConf)
	}
	text, err := os.ReadFile(path)
	return text, info.Mode().Perm(), err
}

// replace writes a file in one step. What a link leads to is replaced, not the
// link; a file that something is mounted on can only be written in place, and so
// can on a full disk one that gets shorter.
func replace(path string, text []byte, mode os.FileMode) error {
	if to, err := filepath.EvalSymlinks(path); err == nil {
		path = to
	}
	err := exchange(path, text, mode)
	if errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		if info, err1 := os.Stat(path); err1 == nil && (errors.Is(err, syscall.EBUSY) || int64(len(text)) <= info.Size()) {
			return overwrite(path, text)
		}
	}
	return err
}

func exchange(path string, text []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".portvakt-*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		return nil
	}
	return errors.Join(err, os.Remove(f.Name()))
}

// overwrite needs no room for a text that is not longer than the file's: what
// there is is cut only once the text is there.
func overwrite(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Truncate(int64(len(text)))
	}
	return errors.Join(err, f.Close())
}
