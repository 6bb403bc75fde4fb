package control_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/internal/wire"
)

// A stranger can be refused without end, but not fill the log with it; how much
// was left out is said.
func TestStrangersDoNotFillTheLog(t *testing.T) {
	g := newGateway(t)
	ask := func() {
		r := httptest.NewRequest(http.MethodPost, wire.PathEnroll, bytes.NewReader([]byte(`{"code":"abc","csr":"","device":{"name":"","serial":"","os":"","arch":"","key_tier":""}}`)))
		w := httptest.NewRecorder()
		g.public.Config.Handler.ServeHTTP(w, r)
		if w.Code != http.StatusForbidden {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	for range 1500 {
		ask()
	}
	if n := len(g.refusals(audit.KindEnrollRefused)); n != 500 {
		t.Errorf("%d records of 1,500 refusals", n)
	}
	g.now.Add(int64(time.Second))
	ask()
	g.refusals(audit.KindEnrollRefused) // waits for the log
	var left string
	err := audit.Scan(g.audit.Path(), func(_ []byte, r *audit.Record) bool {
		left = r.Detail["unrecorded_before"]
		return true
	})
	if err != nil || left != "1000" {
		t.Errorf("the next record says that %q were left out, %v", left, err)
	}
}
