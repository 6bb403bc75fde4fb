package control_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
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

// Whatever a device is refused on the public port is in the log; what it asks
// without end is counted there, and folds no other device's.
func TestRefusedDevicesAreRecorded(t *testing.T) {
	g := newGateway(t)
	l, other := g.enroll(), g.enroll()
	renew := func(l *laptop) wire.Error {
		_, we := g.post(wire.PathRenew, l.tls(t), wire.RenewRequest{CSR: csr(t, l.key)}, &struct{}{})
		return we
	}
	want := []string{}
	refused := func(we wire.Error, code string) {
		t.Helper()
		if we.Code != code {
			t.Fatalf("%+v, want %s", we, code)
		}
		want = append(want, code)
	}
	_, we := g.post(wire.PathConnect, l.tls(t), wire.ConnectRequest{TunnelKey: "no key", BootID: "boot"}, &struct{}{})
	refused(we, "bad_request")
	_, we = g.post(wire.PathConnect, l.tls(t), map[string]string{"nobody's": ""}, &struct{}{})
	refused(we, "bad_request")
	_, we = g.post(wire.PathConnect, l.tls(t), wire.ConnectRequest{TunnelKey: strings.Repeat("a", wire.MaxBody)}, &struct{}{})
	refused(we, "bad_request")
	_, we = g.post(wire.PathRenew, l.tls(t), "no object", &struct{}{})
	refused(we, "bad_request")
	_, we = g.post(wire.PathRenew, l.tls(t), wire.RenewRequest{CSR: csr(t, newKey(t))}, &struct{}{})
	refused(we, "bad_csr")
	for range 8 { // with the two before, as many as at once
		if we := renew(l); we.Code != "" {
			t.Fatalf("%+v", we)
		}
	}
	refused(renew(l), "too_many_renewals")
	g.full.Store(true)
	for range 27 { // with the three before, as many as at once
		if _, we := g.send(http.MethodGet, wire.PathTunnel, l.tls(t), nil, &struct{}{}); we.Code != "unavailable" {
			t.Fatalf("%+v", we)
		}
	}
	_, we = g.send(http.MethodGet, wire.PathTunnel, l.tls(t), nil, &struct{}{})
	refused(we, "too_many_connects")
	_, we = g.connect(l)
	refused(we, "too_many_connects")
	g.now.Add(int64(30 * 24 * time.Hour))
	_, we = g.connect(l)
	refused(we, "certificate_expired")
	_, we = g.send(http.MethodGet, wire.PathTunnel, l.tls(t), nil, &struct{}{})
	refused(we, "certificate_expired")
	g.now.Add(int64(16 * 24 * time.Hour))
	refused(renew(l), "device_unseen")
	if got := g.refusals(audit.KindConnectRefused); !slices.Equal(got, want) {
		t.Errorf("recorded are %v, want %v", got, want)
	}
	if log, err := os.ReadFile(g.audit.Path()); err != nil || bytes.Contains(log, []byte("nobody's")) {
		t.Error("the log has a caller's words, or", err)
	}
	if _, we := g.post(wire.PathEnroll, nil, "no object", &struct{}{}); we.Code != "bad_request" {
		t.Errorf("%+v", we)
	}
	if got := g.refusals(audit.KindEnrollRefused); !slices.Equal(got, []string{"bad_request"}) {
		t.Errorf("recorded of enrolments are %v", got)
	}

	flood := l.tls(t)
	handler := g.public.Config.Handler
	leaf, err := x509.ParseCertificate(flood.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	const asked = 600
	for range asked {
		r := httptest.NewRequest(http.MethodGet, wire.PathTunnel, nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}
		handler.ServeHTTP(httptest.NewRecorder(), r)
	}
	_, we = g.connect(other)
	refused(we, "certificate_expired")
	g.now.Add(int64(5 * time.Second))
	for deadline := time.Now().Add(20 * time.Second); len(g.refusals(audit.KindFolded)) == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	recorded, folded, others := 0, 0, 0
	err = audit.Scan(g.audit.Path(), func(_ []byte, r *audit.Record) bool {
		switch {
		case r.Kind == audit.KindConnectRefused && r.Device == other.id:
			others++
		case r.Kind == audit.KindConnectRefused:
			recorded++
		case r.Kind == audit.KindFolded && r.Device == l.id && r.Reason == "certificate_expired":
			n, err := strconv.Atoi(r.Detail["count"])
			if err != nil {
				t.Error(err)
			}
			folded += n
		}
		return true
	})
	if err != nil || recorded+folded != len(want)-1+asked || recorded > 510 || others != 1 {
		t.Errorf("%d records and %d folded of %d refusals, %d of the other device, %v", recorded, folded, len(want)-1+asked, others, err)
	}
}
