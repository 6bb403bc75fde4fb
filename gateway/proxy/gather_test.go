package proxy

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"
)

// wire is a connection that keeps what is written to it, write by write.
type wire struct {
	net.Conn
	writes [][]byte
}

func (w *wire) Write(b []byte) (int, error) {
	w.writes = append(w.writes, bytes.Clone(b))
	return len(b), nil
}

func TestGather(t *testing.T) {
	for name, c := range map[string]struct {
		pieces []int
		writes int
	}{
		"nothing":              {nil, 0},
		"two records":          {[]int{16 << 10, 300}, 1},
		"more than fits":       {[]int{16 << 10, 16 << 10, 16 << 10, 16<<10 + 1, 5}, 2},
		"one that fits not":    {[]int{10, chunkBytes + 1, 10}, 3},
		"as much as there is":  {[]int{chunkBytes}, 1},
		"many pieces, one too": {[]int{chunkBytes - 1, 1, 1}, 2},
	} {
		w := &wire{}
		conn := &conn{Conn: w, patience: patience{within: time.Minute, over: func() {}}}
		for range 2 {
			w.writes = nil
			var want strings.Builder
			conn.Gather()
			for i, n := range c.pieces {
				piece := strings.Repeat(string(rune('a'+i)), n)
				want.WriteString(piece)
				if k, err := conn.Write([]byte(piece)); k != n || err != nil {
					t.Errorf("%s: %d %v", name, k, err)
				}
			}
			if err := conn.Send(); err != nil {
				t.Error(err)
			}
			if got := string(bytes.Join(w.writes, nil)); got != want.String() || len(w.writes) != c.writes {
				t.Errorf("%s: %d bytes in %d writes, want %d in %d", name, len(got), len(w.writes), want.Len(), c.writes)
			}
			if conn.gathered != nil {
				t.Errorf("%s: a buffer is kept", name)
			}
		}
		if _, _ = conn.Write([]byte("x")); string(w.writes[len(w.writes)-1]) != "x" {
			t.Errorf("%s: a write afterwards waits", name)
		}
	}
}
