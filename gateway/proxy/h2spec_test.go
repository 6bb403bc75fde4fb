//go:build h2spec

package proxy_test

import (
	"crypto/tls"
	"encoding/xml"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/portvakt/portvakt/gateway/proxy"
	"github.com/portvakt/portvakt/policy"
)

var h2spec = flag.String("h2spec", "h2spec", "the program of that name (make h2spec)")

// TestH2Spec runs h2spec against the gateway and against Go's own server in
// front of the same app: the gateway fails in no case in which Go's server does not.
func TestH2Spec(t *testing.T) {
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "what h2spec asks for is of no interest, as long as there is some of it\n")
	})
	e := httptest.NewServer(app)
	defer e.Close()
	plain := httptest.NewUnstartedServer(app)
	plain.EnableHTTP2 = true
	plain.Config.ErrorLog = log.New(io.Discard, "", 0)
	plain.StartTLS()
	defer plain.Close()

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": e.URL}, func(c *proxy.Config) {
		byAddr := c.AppByAddr
		c.AppByAddr = func(a netip.Addr) *policy.App {
			app := *byAddr(a)
			app.Hosts = append([]string{l.Addr().String()}, app.Hosts...) // what h2spec calls it
			return &app
		}
		certificate := c.Certificate
		c.Certificate = func([]string) (*tls.Certificate, error) { return certificate([]string{"crm.test"}) }
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.proxy.HandleTCP(inbound{c, netip.AddrPortFrom(w.device.Addresses[0], uint16(w.ports.Add(1))), w.address("crm.test", 443)})
		}
	}()

	ours, total := failures(t, l.Addr().String())
	theirs, _ := failures(t, plain.Listener.Addr().String())
	t.Logf("of %d cases the gateway fails %d, Go's server %d", total, len(ours), len(theirs))
	if total < 100 {
		t.Errorf("only %d cases were run", total)
	}
	for name, text := range ours {
		if _, both := theirs[name]; !both {
			t.Errorf("%s fails on the gateway alone: %s", name, text)
		}
	}
}

// failures runs h2spec and returns the cases that failed.
func failures(t *testing.T, addr string) (failed map[string]string, total int) {
	t.Helper()
	host, port, _ := net.SplitHostPort(addr)
	report := filepath.Join(t.TempDir(), "report.xml")
	out, err := exec.Command(*h2spec, "-t", "-k", "-h", host, "-p", port, "-o", strconv.Itoa(2), "-j", report).CombinedOutput()
	data, rerr := os.ReadFile(report)
	if rerr != nil {
		t.Fatalf("running h2spec: %v\n%s", err, out)
	}
	var suites struct {
		Suites []struct {
			Cases []struct {
				Package string `xml:"package,attr"`
				Name    string `xml:"classname,attr"`
				Failure *struct {
					Text string `xml:",chardata"`
				} `xml:"failure"`
				Error *struct {
					Text string `xml:",chardata"`
				} `xml:"error"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(data, &suites); err != nil {
		t.Fatal(err)
	}
	failed = map[string]string{}
	for _, s := range suites.Suites {
		for _, c := range s.Cases {
			total++
			if c.Failure != nil {
				failed[c.Package+" "+c.Name] = c.Failure.Text
			} else if c.Error != nil {
				failed[c.Package+" "+c.Name] = c.Error.Text
			}
		}
	}
	return failed, total
}
