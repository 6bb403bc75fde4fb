//go:build !race

// The race detector makes a transfer of this size take a minute, and finds
// nothing in it that it does not find in a small one.

package proxy_test

import (
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// largeMiB is what is moved each way. `make test-large` moves 10 GiB.
var largeMiB = flag.Int64("large", 96, "MiB that TestLargeTransfersTakeNoMemory moves each way")

// held is the most that the process held at a time.
type held struct{ heap, resident atomic.Uint64 }

func (h *held) look() {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	h.heap.Store(max(h.heap.Load(), m.HeapInuse))
	h.resident.Store(max(h.resident.Load(), resident()))
}

// resident is the process's resident memory in bytes, 0 where it is not known.
func resident() uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	pages, _ := strconv.ParseUint(fields[1], 10, 64)
	return pages * uint64(os.Getpagesize())
}

// zeros is a body of so many bytes that nobody holds. Each 16 MiB or so it looks
// at what the process holds.
type zeros struct {
	left int64
	held *held
	n    int
}

func (z *zeros) Read(b []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	if z.n++; z.n%512 == 0 {
		z.held.look()
	}
	n := min(int64(len(b)), z.left)
	clear(b[:n])
	z.left -= n
	return int(n), nil
}

// However large a transfer is, in either direction and over either protocol,
// the gateway holds a few buffers of it.
func TestLargeTransfersTakeNoMemory(t *testing.T) {
	size := *largeMiB << 20
	var most held
	app := func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			return
		}
		if r.Method == http.MethodPost {
			_, _ = io.WriteString(w, strconv.FormatInt(n, 10))
			return
		}
		if r.URL.RawQuery == "" { // get keeps what it reads
			_, _ = io.Copy(struct{ io.Writer }{w}, &zeros{left: size, held: &most})
		}
	}
	plain, secure := httptest.NewServer(http.HandlerFunc(app)), httptest.NewTLSServer(http.HandlerFunc(app))
	defer plain.Close()
	defer secure.Close()
	down := func(t *testing.T, c *http.Client) {
		res, err := c.Get("https://crm.test/")
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if n != size || err != nil {
			t.Errorf("%d bytes came: %v", n, err)
		}
	}
	up := func(t *testing.T, c *http.Client) {
		res, err := c.Post("https://crm.test/", "application/octet-stream", &zeros{left: size, held: &most})
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if string(body) != strconv.FormatInt(size, 10) {
			t.Errorf("the app got %s bytes", body)
		}
	}
	for name, apps := range map[string][]string{"http app": {crmYAML}, "https app": secureApp(t, secure, "")} {
		w := newWorld(t, apps, map[string]string{"crm": plain.URL})
		for _, h2 := range []bool{false, true} {
			c := w.client(h2)
			c.Timeout = 0
			get(t, c, "https://crm.test/?warm")
			over := map[bool]string{false: "HTTP/1.1", true: "HTTP/2"}[h2]
			t.Run(name+"/"+over+"/down", func(t *testing.T) { most.during(t, size, func() { down(t, c) }) })
			t.Run(name+"/"+over+"/up", func(t *testing.T) { most.during(t, size, func() { up(t, c) }) })
		}
	}
}

// during moves something of a size and says what was held meanwhile. Client and
// app are in this process too.
func (h *held) during(t *testing.T, size int64, move func()) {
	const heapRoom, residentRoom = 48 << 20, 256 << 20
	debug.FreeOSMemory()
	h.heap.Store(0)
	h.resident.Store(0)
	h.look()
	heap, resident, began := h.heap.Load(), h.resident.Load(), time.Now()
	move()
	t.Logf("%d MiB in %v: heap %d MiB before, at most %d; resident %d before, at most %d", size>>20, time.Since(began).Round(time.Millisecond),
		heap>>20, h.heap.Load()>>20, resident>>20, h.resident.Load()>>20)
	if h.heap.Load() > heap+heapRoom {
		t.Errorf("%d MiB more of heap were held", (h.heap.Load()-heap)>>20)
	}
	if h.resident.Load() > resident+residentRoom {
		t.Errorf("%d MiB more were resident", (h.resident.Load()-resident)>>20)
	}
}
