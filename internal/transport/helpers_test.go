package transport

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// datagrams of the given sizes with bytes of their own.
func datagrams(seed uint64, sizes ...int) [][]byte {
	var s [32]byte
	binary.LittleEndian.PutUint64(s[:], seed)
	r := rand.NewChaCha8(s)
	all := make([][]byte, len(sizes))
	for i, n := range sizes {
		all[i] = make([]byte, n)
		_, _ = r.Read(all[i])
	}
	return all
}

func repeat(size, n int, more ...int) []int {
	var all []int
	for range n {
		all = append(all, size)
	}
	return append(all, more...)
}
