package loopback_test

import (
	"context"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/agent/loopback"
	"github.com/portvakt/portvakt/internal/page"
	"github.com/portvakt/portvakt/internal/wire"
)

// Whoever opens an app in a browser is told why it does not come, in their
// language; another program gets one line.
func TestUnreachable(t *testing.T) {
	revoked := &wire.Error{Code: "device_revoked", Message: "Datorn <får> inte ansluta.", Remedy: "Fråga IT.", Denial: &wire.Denial{}}
	for name, c := range map[string]struct {
		err        error
		page, line string
	}{
		"refused": {os.ErrClosed, "Gatewayen nekade anslutningen.|<code>portvakt-agent why crm</code>", "refused the connection to crm"},
		"silent":  {context.DeadlineExceeded, "Gatewayen svarade inte i tid.|<code>portvakt-agent status</code>", "did not answer for crm in time"},
		"offline": {&wire.Error{Code: "dns", Message: "The name cannot be resolved.", Remedy: "Go online."}, "Datorn är inte ansluten till gatewayen.|<code>portvakt-agent status</code>", "The name cannot be resolved. Go online."},
		"revoked": {revoked, "Datorn &lt;får&gt; inte ansluta.|Fråga IT.", "Datorn <får> inte ansluta. Fråga IT."},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, loopback.Config{Dial: func(context.Context, string, netip.AddrPort) (net.Conn, error) { return nil, c.err }}, crm)
			r, body := ask(t, s, "GET http://crm.example.test/ HTTP/1.1\nHost: x\nAccept: text/html,*/*;q=0.8\nAccept-Language: sv-SE,en;q=0.5")
			for _, want := range append(strings.Split(c.page, "|"), `<html lang="sv">`, `<bdi>crm</bdi>`, `<a href="">Försök igen</a>`) {
				if !strings.Contains(body, want) {
					t.Errorf("the page lacks %q:\n%s", want, body)
				}
			}
			if csp := r.Header.Get("Content-Security-Policy"); r.StatusCode != 502 || !strings.HasPrefix(csp, "default-src 'none'") || r.Header.Get("Content-Language") != "sv" {
				t.Errorf("%d %v", r.StatusCode, r.Header)
			}
			for _, head := range []string{"GET http://crm.example.test/ HTTP/1.1\nHost: x\nAccept: */*", "CONNECT crm.example.test:443 HTTP/1.1\nHost: x"} {
				if r, body := ask(t, s, head); r.StatusCode != 502 || !strings.Contains(body, c.line) || strings.Contains(body, "<html") {
					t.Errorf("%s: %d %q", head, r.StatusCode, body)
				}
			}
		})
	}
}

// No language lacks a word.
func TestWordsInEveryLanguage(t *testing.T) {
	for _, lang := range page.Languages {
		for name, v := range reflect.ValueOf(loopback.Languages[lang]).Fields() {
			if v.String() == "" {
				t.Errorf("%s has no %s", lang, name.Name)
			}
		}
	}
}
