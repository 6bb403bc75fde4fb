package policy

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Bounds of a policy directory. They are far above what people write and keep
// a mistake (a log file dropped in, an endless device) from being read.
const (
	MaxFileSize = 1 << 20 // bytes
	MaxFiles    = 1000
)

// sourceFile is one file of the policy directory as it was read.
type sourceFile struct {
	name string // within the directory
	path string // as people know it
	data []byte
}

func (f sourceFile) rego() bool { return strings.HasSuffix(f.name, ".rego") }

// wantedFile says whether a name in the policy directory is policy. Hidden
// files, editors' backups and Rego tests are not.
func wantedFile(name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") || strings.HasSuffix(name, "_test.rego") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".rego":
		return true
	}
	return false
}

// readDir reads every policy file of dir, by name.
func readDir(dir string, checkOwner bool) ([]sourceFile, error) {
	d, err := openPlain(dir)
	if err != nil {
		return nil, fmt.Errorf("reading policy directory: %w", err)
	}
	defer d.Close()
	info, err := d.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading policy directory: %w", err)
	}
	if !info.IsDir() {
		return nil, Problems{{File: dir, Text: "wanted a directory of policy files, found a file"}}
	}
	if checkOwner {
		if err := ownedProperly(dir, info); err != nil {
			return nil, err
		}
	}
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("reading policy directory: %w", err)
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !wantedFile(n) })
	if len(names) > MaxFiles {
		return nil, Problems{{File: dir, Text: fmt.Sprintf("wanted at most %d policy files, found %d", MaxFiles, len(names))}}
	}
	slices.Sort(names)
	var files []sourceFile
	var problems Problems
	for _, name := range names {
		path := filepath.Join(dir, name)
		data, err := readPlain(path, checkOwner)
		var more Problems
		switch {
		case errors.As(err, &more):
			problems = append(problems, more...)
		case err != nil:
			problems = append(problems, Problem{File: path, Text: err.Error()})
		default:
			files = append(files, sourceFile{name: name, path: path, data: data})
		}
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return files, nil
}

// ReadTrusted reads a file that, like the policy's own, only this process's user
// or root could have written.
func ReadTrusted(path string) ([]byte, error) {
	data, err := readPlain(path, true)
	var problems Problems
	if err != nil && !errors.As(err, &problems) {
		err = Problem{File: path, Text: err.Error()}
	}
	return data, err
}

// readPlain reads a regular file whose owner and mode were checked on the very
// file that is read.
func readPlain(path string, checkOwner bool) ([]byte, error) {
	f, err := openPlain(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("wanted a file that uid %d (this program's user) may read: %w", os.Geteuid(), pathless(err))
	}
	if err != nil {
		return nil, fmt.Errorf("wanted a readable file: %w", pathless(err))
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("wanted a readable file: %w", pathless(err))
	}
	if !before.Mode().IsRegular() {
		return nil, Problems{{File: path, Text: "wanted a file, found " + kindOf(before.Mode())}}
	}
	if checkOwner {
		if err := ownedProperly(path, before); err != nil {
			return nil, err
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("wanted a readable file: %w", pathless(err))
	}
	if len(data) > MaxFileSize {
		return nil, Problems{{File: path, Text: fmt.Sprintf("wanted at most %d bytes, found more", MaxFileSize)}}
	}
	after, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("wanted a readable file: %w", pathless(err))
	}
	if int64(len(data)) != after.Size() || !after.ModTime().Equal(before.ModTime()) {
		return nil, Problems{{File: path, Text: "changed while it was read; it is read again when it has settled"}}
	}
	return data, nil
}

// pathless drops the path of an error whose Problem names it already.
func pathless(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	}
	return "a device"
}

// fingerprint sums up what a look at dir shows without reading a file. youngest
// is the latest modification.
func fingerprint(dir string) (sum string, youngest time.Time) {
	var b strings.Builder
	note := func(name string, info fs.FileInfo, err error) {
		if err != nil {
			fmt.Fprintf(&b, "%q %v\n", name, pathless(err))
			return
		}
		if info.ModTime().After(youngest) {
			youngest = info.ModTime()
		}
		fmt.Fprintf(&b, "%q %d %d %v %s\n", name, info.Size(), info.ModTime().UnixNano(), info.Mode(), identity(info))
	}
	info, err := os.Stat(dir)
	if err != nil {
		note(dir, nil, err)
		return b.String(), youngest
	}
	// The directory's own time and size change with files that are no policy.
	fmt.Fprintf(&b, "%v %s\n", info.Mode(), identity(info))
	entries, err := os.ReadDir(dir)
	if err != nil {
		note(dir, nil, err)
		return b.String(), youngest
	}
	for _, e := range entries {
		if wantedFile(e.Name()) {
			info, err := os.Stat(filepath.Join(dir, e.Name()))
			note(e.Name(), info, err)
		}
	}
	return b.String(), youngest
}

// shellQuote makes path safe to paste into a shell.
func shellQuote(path string) string {
	if !strings.ContainsFunc(path, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@,", r)
	}) {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
