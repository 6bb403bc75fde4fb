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
	g.now.Add(int64(5 * time.Second)) // a fold is written at most that long after it began
	for deadline := time.Now().Add(5 * time.Second); len(g.refusals(audit.KindFolded)) == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	var folded []audit.Record
	err := audit.Scan(g.audit.Path(), func(_ []byte, r *audit.Record) bool {
		if r.Kind == audit.KindFolded {
			folded = append(folded, *r)
		}
		return true
	})
	if err != nil || len(folded) != 1 || folded[0].Detail["count"] != "1000" || folded[0].Detail["kind"] != string(audit.KindEnrollRefused) || folded[0].Reason != "code_unknown" {
		t.Errorf("folded were %+v, %v", folded, err)
	}
}
