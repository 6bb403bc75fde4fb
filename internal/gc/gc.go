// Package gc says when garbage is collected.
package gc

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// smallHeap is what a small heap grows to before garbage is collected: with
	// Go's own 4 MiB a gateway with few devices and many requests would collect
	// ten times a second, and each time requests wait.
	smallHeap = 32 << 20
	// growth of a larger one, in percent. Under load nearly all of it is
	// WireGuard's 64 KiB buffers, most of them in its pool: what is live is cheap
	// to mark, and what waits for the collector is resident.
	growth = 50
)

// Pace has a small heap collected seldom and a large one often, unless the
// operator says otherwise with GOGC or GOMEMLIMIT. It holds for the whole
// process: a program calls it once, from its main.
func Pace() {
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
		pace(debug.SetGCPercent(growth))
	}
}

// collected is found dead by every collection. It holds a pointer, so that
// nothing else shares its memory and keeps it.
type collected struct{ _ *collected }

// pace sets how far the heap may grow, now and after every collection.
func pace(percent int) {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/globals:bytes"}, {Name: "/gc/scan/stack:bytes"}}
	metrics.Read(s)
	if next := growthOf(s[0].Value.Uint64(), s[1].Value.Uint64()+s[2].Value.Uint64()); next < percent*9/10 || next > percent*11/10 {
		debug.SetGCPercent(next) // stops the world, which is not worth a little
		percent = next
	}
	runtime.AddCleanup(&collected{}, pace, percent)
}

// growthOf is how far a heap of so many live bytes may grow, in percent of them
// and of the bytes that point into it from outside. Of a heap that is smaller
// still, Go takes them as those of 4 MiB.
func growthOf(live, roots uint64) int {
	if live >= smallHeap {
		return growth
	}
	return max(growth, int(100*(smallHeap-live)/max(live+roots, 4<<20)))
}
