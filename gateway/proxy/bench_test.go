package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// One request through the whole chain on a kept connection: framing, policy,
// record, assertion, upstream.
func BenchmarkRequest(b *testing.B) {
	for _, size := range []int{100, 16 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			body := make([]byte, size)
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }))
			defer srv.Close()
			w := newWorld(b, []string{crmYAML}, map[string]string{"crm": srv.URL})
			c := w.client(false)
			b.SetBytes(int64(size))
			for b.Loop() {
				res, err := c.Get("https://crm.test/a")
				if err != nil || res.StatusCode != 200 {
					b.Fatal(res, err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		})
	}
}
