package notary

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
)

// tiles are the hashes of the tree on disk: 256 of one level to a file, in the
// layout of golang.org/x/mod/sumdb/tlog. What is not yet a full tile is in
// memory too, level by level.
type tiles struct {
	dir     string
	size    int64 // records in the tree
	edge    [][]tlog.Hash
	partial []string // partial tiles on disk, as of the last save
	old     []string // and those that it replaced
	loose   []string // tiles that may not be on the disk yet
}

// add appends a record's hash to the tree. A tile that becomes full is written;
// when it cannot be, the tree stays as it was.
func (t *tiles) add(h tlog.Hash) error {
	level := 0
	for ; ; level++ {
		if level == len(t.edge) {
			t.edge = append(t.edge, make([]tlog.Hash, 0, tileWidth))
		}
		row := append(t.edge[level], h) // in edge only when all is written
		if len(row) < tileWidth {
			t.edge[level] = row
			break
		}
		full := tlog.Tile{H: tileHeight, L: level, N: t.size >> (tileHeight * (level + 1)), W: tileWidth}
		if err := t.write(full, row); err != nil {
			return err
		}
		h = perfect(row)
	}
	for l := range level {
		t.edge[l] = t.edge[l][:0]
	}
	t.size++
	return nil
}

// perfect is the hash over a power of two of hashes: RFC 6962, section 2.1.
func perfect(hs []tlog.Hash) tlog.Hash {
	row := append([]tlog.Hash(nil), hs...)
	for len(row) > 1 {
		for i := 0; i < len(row); i += 2 {
			row[i/2] = tlog.NodeHash(row[i], row[i+1])
		}
		row = row[:len(row)/2]
	}
	return row[0]
}

// save writes the partial tiles. Those of before stay until [tiles.prune].
func (t *tiles) save() error {
	var now []string
	for level, hs := range t.edge {
		if len(hs) == 0 {
			continue
		}
		tile := tlog.Tile{H: tileHeight, L: level, N: t.size >> (tileHeight * (level + 1)), W: len(hs)}
		if err := t.write(tile, hs); err != nil {
			return err
		}
		now = append(now, tile.Path())
	}
	t.old = append(t.old, t.partial...)
	t.partial = now
	return nil
}

// prune removes the partial tiles that only trees before the last saved one
// need. What stays behind is litter: no tree names it.
func (t *tiles) prune() {
	for _, p := range t.old {
		if !slices.Contains(t.partial, p) {
			_ = os.Remove(filepath.Join(t.dir, p))
			_ = os.Remove(filepath.Dir(filepath.Join(t.dir, p)))
		}
	}
	t.old = nil
}

func (t *tiles) write(tile tlog.Tile, hs []tlog.Hash) error {
	data := make([]byte, 0, len(hs)*tlog.HashSize)
	for _, h := range hs {
		data = append(data, h[:]...)
	}
	path := filepath.Join(t.dir, filepath.FromSlash(tile.Path()))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("writing the audit tree: %w", err)
	}
	// A tile's content never changes. One that is there may be of the checkpoint that
	// is there, as the partial ones of upper levels are for long: who is killed while
	// it is written again, or finds no room to, leaves that checkpoint without it.
	was, err := os.ReadFile(path)
	if err == nil && bytes.Equal(was, data) && !slices.Contains(t.loose, path) {
		t.loose = append(t.loose, path)
		return nil
	}
	t.loose = append(t.loose, path)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("writing the audit tree: %w", err)
	}
	return nil
}

// maxLoose is how many files are synced one by one; of more all of the file
// system is.
const maxLoose = 64

// sync makes what was written survive a crash of the machine.
func (t *tiles) sync() error {
	var err error
	if len(t.loose) > maxLoose {
		err = onOpen(t.dir, func(d *os.File) error { return unix.Syncfs(int(d.Fd())) })
	} else {
		names := map[string]bool{}
		for _, path := range t.loose {
			for ; !names[path] && len(path) >= len(t.dir); path = filepath.Dir(path) {
				names[path] = true
			}
		}
		for path := range names {
			err = errors.Join(err, onOpen(path, (*os.File).Sync))
		}
	}
	if err != nil {
		return fmt.Errorf("syncing the audit tree: %w", err)
	}
	t.loose = nil
	return nil
}

// load reads the edge of a tree of that size.
func (t *tiles) load(size int64) error {
	*t = tiles{dir: t.dir, size: size}
	for level := 0; size>>(tileHeight*level) > 0; level++ {
		count := size >> (tileHeight * level)
		hs := make([]tlog.Hash, 0, tileWidth)
		if w := int(count % tileWidth); w > 0 {
			tile := tlog.Tile{H: tileHeight, L: level, N: count >> tileHeight, W: w}
			data, err := t.read(tile)
			if err != nil {
				return err
			}
			for i := range w {
				hs = append(hs, tlog.Hash(data[i*tlog.HashSize:]))
			}
			t.partial = append(t.partial, tile.Path())
		}
		t.edge = append(t.edge, hs)
	}
	return nil
}

var errTile = errors.New("a tile of the audit tree is damaged")

func (t *tiles) read(tile tlog.Tile) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(t.dir, filepath.FromSlash(tile.Path())))
	if err != nil {
		return nil, fmt.Errorf("reading the audit tree: %w", err)
	}
	if len(data) != tile.W*tlog.HashSize {
		return nil, fmt.Errorf("reading the audit tree: %s: %w", tile.Path(), errTile)
	}
	return data, nil
}

// ReadHashes implements [tlog.HashReader] over what is in memory and on disk.
func (t *tiles) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		tile := tlog.TileForIndex(tileHeight, index)
		data, err := t.data(tile)
		if err != nil {
			return nil, err
		}
		if out[i], err = tlog.HashFromTile(tile, data, index); err != nil {
			return nil, fmt.Errorf("reading the audit tree: %w", err)
		}
	}
	return out, nil
}

// data returns the first tile.W hashes of a tile, wherever they are.
func (t *tiles) data(tile tlog.Tile) ([]byte, error) {
	if tile.L < len(t.edge) && tile.N == t.size>>(tileHeight*(tile.L+1)) {
		var data []byte
		for _, h := range t.edge[tile.L][:min(tile.W, len(t.edge[tile.L]))] {
			data = append(data, h[:]...)
		}
		return data, nil
	}
	full := tile
	full.W = tileWidth
	data, err := t.read(full)
	if err != nil {
		return nil, err
	}
	return data[:tile.W*tlog.HashSize], nil
}

// root is the hash of the whole tree.
func (t *tiles) root() (tlog.Hash, error) {
	h, err := tlog.TreeHash(t.size, t)
	if err != nil {
		return tlog.Hash{}, fmt.Errorf("computing the audit tree's root: %w", err)
	}
	return h, nil
}

// top is the directory that all tiles are in.
func (t *tiles) top() string {
	return filepath.Join(t.dir, strings.Split(tlog.Tile{H: tileHeight, W: 1}.Path(), "/")[0])
}

// clear removes every tile.
func (t *tiles) clear() error {
	*t = tiles{dir: t.dir}
	if err := os.RemoveAll(t.top()); err != nil {
		return fmt.Errorf("clearing the audit tree: %w", err)
	}
	return nil
}
