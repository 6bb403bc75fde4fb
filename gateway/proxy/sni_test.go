package proxy_test

import (
	"context"
	"net"
	"net/http"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/policy"
)

// Whoever shakes hands for another name gets the app's certificate all the same,
// and is told why no request is served.
func TestTheHandshakeNamesTheApp(t *testing.T) {
	e := newEcho(t)
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": e.URL})
	served, refused := 0, 0
	for _, h2 := range []bool{false, true} {
		for _, c := range []struct {
			sni, host string
			status    int
		}{
			{"127.0.0.1", "crm.test", 200}, // an address is not sent
			{"crm.test", "crm.test", 200},
			{"CRM.test", "crm.test", 200},
			{"kunder.test", "crm.test", 200}, // as a browser does that joins connections
			{"evil.test", "crm.test", 421},
			{"probe.test", "crm.test", 421}, // another app's
			{"crm.test", "evil.test", 421},
			{"probe.test", "probe.test", 421},
			{"sub.crm.test", "crm.test", 421},
		} {
			client := w.client(h2)
			tr := client.Transport.(*http.Transport)
			tr.TLSClientConfig.ServerName, tr.TLSClientConfig.InsecureSkipVerify = c.sni, true
			dial := tr.DialContext
			tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return dial(ctx, network, "crm.test:443")
			}
			res, _ := getHost(t, client, "https://crm.test/", c.host)
			if res.StatusCode != c.status || res.ProtoMajor != map[bool]int{false: 1, true: 2}[h2] {
				t.Errorf("h2 %v, SNI %q, Host %q: %s %s", h2, c.sni, c.host, res.Proto, res.Status)
			}
			if err := res.TLS.PeerCertificates[0].VerifyHostname("crm.test"); err != nil {
				t.Errorf("SNI %q: %v", c.sni, err)
			}
			if c.status == 200 {
				served++
			} else {
				refused++
			}
		}
	}
	if n := len(e.requests()); n != served {
		t.Errorf("the app saw %d requests, want %d", n, served)
	}
	names := map[string]int{}
	for _, r := range w.records(audit.KindDecision, served+refused) {
		if r.Reason == string(policy.ReasonMisdirected) {
			names[r.Fact.Name+" "+r.Fact.Value]++
		}
	}
	for what, n := range map[string]int{
		"tls server name evil.test": 2, "tls server name probe.test": 2, "tls server name sub.crm.test": 2, "host evil.test": 2, "host probe.test": 2,
	} {
		if names[what] != n {
			t.Errorf("%s: recorded %d times, want %d of %v", what, names[what], n, names)
		}
	}
}
