//go:build !race

// The race detector makes a transfer of this size take a minute, and finds
// nothing in it that it does not find in a small one.

package proxy_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
)

// zeros is a body of so many bytes that nobody holds; peak is what the process
// held meanwhile.
type zeros struct {
	left int64
	peak *atomic.Uint64
	n    int
}

func (z *zeros) Read(b []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	if z.n++; z.n%512 == 0 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		z.peak.Store(max(z.peak.Load(), m.HeapInuse))
	}
	n := min(int64(len(b)), z.left)
	clear(b[:n])
	z.left -= n
	return int(n), nil
}

// However large a transfer is, in either direction and over either protocol,
// the gateway holds a few buffers of it.
func TestLargeTransfersTakeNoMemory(t *testing.T) {
	const size, room = 96 << 20, 48 << 20 // client and app are in this process too
	var peak atomic.Uint64
	app := func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			return
		}
		if r.Method == http.MethodPost {
			_, _ = io.WriteString(w, strconv.FormatInt(n, 10))
			return
		}
		_, _ = io.Copy(struct{ io.Writer }{w}, &zeros{left: size, peak: &peak})
	}
	plain, secure := httptest.NewServer(http.HandlerFunc(app)), httptest.NewTLSServer(http.HandlerFunc(app))
	defer plain.Close()
	defer secure.Close()
	for name, apps := range map[string][]string{"http": {crmYAML}, "https": secureApp(t, secure, "")} {
		w := newWorld(t, apps, map[string]string{"crm": plain.URL})
		for _, h2 := range []bool{false, true} {
			c := w.client(h2)
			c.Timeout = 0
			get(t, c, "https://crm.test/?warm")
			runtime.GC()
			var before runtime.MemStats
			runtime.ReadMemStats(&before)
			peak.Store(0)
			res, err := c.Get("https://crm.test/")
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
			if n != size || err != nil {
				t.Errorf("%s, h2 %v: %d bytes came: %v", name, h2, n, err)
			}
			res, err = c.Post("https://crm.test/", "application/octet-stream", &zeros{left: size, peak: &peak})
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if string(body) != strconv.Itoa(size) {
				t.Errorf("%s, h2 %v: the app got %s bytes", name, h2, body)
			}
			if held := peak.Load(); held > before.HeapInuse+room {
				t.Errorf("%s, h2 %v: %d MiB more were held", name, h2, (held-before.HeapInuse)>>20)
			}
		}
	}
}
