package posture

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxFile bounds every file a collector reads, in bytes.
const maxFile = 1 << 20

// tree reads files below a root. Paths are relative to it ("proc/swaps").
type tree struct{ root *os.Root }

func openTree(dir string) (*tree, error) {
	r, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the root: %w", err)
	}
	return &tree{r}, nil
}

func (t *tree) close() { t.root.Close() }

// read returns a regular file whole. O_NONBLOCK keeps a FIFO in its place from
// stopping the agent.
func (t *tree) read(name string) (string, error) {
	f, err := t.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", name, bare(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", name, bare(err))
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("reading %s: not a regular file", name)
	}
	data, all, err := readBounded(f, maxFile)
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", name, bare(err))
	}
	if !all {
		return "", fmt.Errorf("reading %s: larger than %d bytes", name, maxFile)
	}
	return string(data), nil
}

// line returns the first line of a small file, as sysfs writes them.
func (t *tree) line(name string) (string, error) {
	s, err := t.read(name)
	s, _, _ = strings.Cut(s, "\n")
	return strings.TrimSpace(s), err
}

// names lists a directory, sorted.
func (t *tree) names(dir string) ([]string, error) {
	f, err := t.root.OpenFile(dir, os.O_RDONLY|unix.O_NONBLOCK|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", dir, bare(err))
	}
	defer f.Close()
	names, err := f.Readdirnames(4096)
	if err != nil && len(names) == 0 && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("listing %s: %w", dir, bare(err))
	}
	if len(names) == 4096 {
		return nil, fmt.Errorf("listing %s: too many entries", dir)
	}
	slices.Sort(names)
	return names, nil
}

// exists says whether the name is there, be it a dangling link.
func (t *tree) exists(name string) bool {
	_, err := t.root.Lstat(name)
	return err == nil
}

// missing says that an error means "no such file".
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// bare drops the path an error repeats.
func bare(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// real returns the name with its last part's link followed once, so that the
// parent of a sysfs device can be named.
func (t *tree) real(name string) string {
	to, err := t.root.Readlink(name)
	if err != nil || path.IsAbs(to) {
		return name
	}
	return path.Join(path.Dir(name), to)
}
