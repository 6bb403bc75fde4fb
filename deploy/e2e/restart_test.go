package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portvakt/portvakt/deploy/demo/stage"
	"github.com/portvakt/portvakt/gateway/audit"
)

// company is the demo's company with fresh binaries, and a browser on Anna's
// laptop.
type company struct {
	*stage.Stage
	t       *testing.T
	browser *http.Client
	desk    *line // for the tests of faults
}

func newCompany(t *testing.T) *company {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("needs Linux: the laptops take addresses of 127.0.0.0/8")
	}
	bin := t.TempDir()
	for dir, pkgs := range map[string][]string{"../..": {"./cmd/portvakt-gateway", "./cmd/portvakt-agent"}, "..": {"./demo"}} {
		cmd := exec.CommandContext(t.Context(), "go", append([]string{"build", "-o", bin + "/"}, pkgs...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("building: %v\n%s", err, out)
		}
	}
	s, err := stage.Up(t.Context(), stage.Config{Bin: bin, Self: filepath.Join(bin, "demo"), Progress: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.Logs(25))
		}
		if err := s.Down(); err != nil {
			t.Error(err)
		}
	})
	ca, err := os.ReadFile(s.CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	tr := &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: s.Anna.Proxy}),
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true,
	}
	return &company{Stage: s, t: t, browser: &http.Client{Transport: tr, Timeout: 5 * time.Second}}
}

// get asks the CRM through Anna's laptop; the word is the Reason of a refusal.
func (c *company) get() (int, string) {
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, "https://"+stage.CRMHost+"/api/customers", nil)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Accept", "application/json")
	resp, err := c.browser.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	var denial struct{ Reason string }
	_ = json.NewDecoder(resp.Body).Decode(&denial) // the CRM's own answer has no reason
	return resp.StatusCode, denial.Reason
}

// until waits for an answer of the CRM and returns how long it took.
func (c *company) until(status int, reason string) time.Duration {
	c.t.Helper()
	start := time.Now()
	for {
		got, why := c.get()
		if got == status && why == reason {
			return time.Since(start)
		}
		if time.Since(start) > 40*time.Second {
			c.t.Fatalf("wanted %d %q from the CRM, got %d %q", status, reason, got, why)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (c *company) session() string {
	c.t.Helper()
	out, err := c.Gateway(c.t.Context(), "sessions", "list", "--json")
	if err != nil {
		c.t.Fatal(err)
	}
	var list struct {
		Items []struct{ ID, Name string }
	}
	if err := json.Unmarshal(out, &list); err != nil {
		c.t.Fatal(err)
	}
	for _, s := range list.Items {
		if s.Name == stage.Anna.Name {
			return s.ID
		}
	}
	return ""
}

// metric is what the gateway counts under a name.
func (c *company) metric(name string) float64 {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, c.Health+"/metrics", nil)
	c.must(err)
	resp, err := http.DefaultClient.Do(req)
	c.must(err)
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			n, err := strconv.ParseFloat(v, 64)
			c.must(err)
			return n
		}
	}
	c.t.Fatalf("there is no metric %s", name)
	return 0
}

func (c *company) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// TestCrashes kills each part of the company and brings it back: nobody logs in
// twice, and each failure is said to the one whom it meets.
func TestCrashes(t *testing.T) {
	c := newCompany(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	c.must(c.Anna.Login(ctx))
	c.until(http.StatusOK, "")
	session := c.session()
	if session == "" {
		t.Fatal("nobody is logged in")
	}

	t.Run("agent", func(t *testing.T) {
		c.must(c.Kill("agent-anna"))
		if status, why := c.get(); status != 0 {
			t.Errorf("without an agent the CRM answered %d %s", status, why)
		}
		c.must(c.Again("agent-anna"))
		t.Logf("back after %s", c.until(http.StatusOK, ""))
		if got := c.session(); got != session {
			t.Errorf("the session was %s, is %s", session, got)
		}
	})
	t.Run("gateway", func(t *testing.T) {
		before := c.connects(ctx)
		c.must(c.Kill("gateway"))
		c.must(c.Again("gateway"))
		t.Logf("back after %s", c.until(http.StatusOK, ""))
		if got := c.session(); got != session {
			t.Errorf("the session was %s, is %s", session, got)
		}
		// That they are back in no time is because they were called.
		if n := c.metric("portvakt_tunnel_hailed_total"); n < 1 {
			t.Error("the gateway called nobody")
		}
		// ... and because nobody hands a new key in.
		if n := c.connects(ctx) - before; n != 0 {
			t.Errorf("%d connected anew", n)
		}
	})
	t.Run("app", func(t *testing.T) {
		c.must(c.Kill("crm"))
		c.until(http.StatusBadGateway, "upstream_unavailable")
		c.must(c.Again("crm"))
		c.until(http.StatusOK, "")
	})
	t.Run("identity provider", func(t *testing.T) {
		c.must(c.Kill("idp"))
		// The gateway knows what the provider said, and asks whether it is still
		// there unless it heard so in the last 3 s.
		time.Sleep(3 * time.Second)
		out, err := c.Ben.Agent(ctx, "login", "--no-browser")
		if err == nil || !strings.Contains(err.Error()+string(out), "login service does not answer") {
			t.Errorf("logging in without a provider: %v %s", err, out)
		}
		c.until(http.StatusOK, "") // who is logged in works on
		c.must(c.Again("idp"))
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
			if err = c.Ben.Login(ctx); err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("the provider is back: %v", err)
			}
		}
	})
	t.Run("policy", func(t *testing.T) {
		c.must(c.WritePolicy("broken.yaml", "name: [\n"))
		c.waitPolicy("refused")
		c.until(http.StatusOK, "")
		// A restart over the mistake keeps the last good revision too.
		c.must(c.Kill("gateway"))
		c.must(c.Again("gateway"))
		c.until(http.StatusOK, "")
		c.must(c.RemovePolicy("broken.yaml"))
		c.waitPolicy("ok")
	})
	records, err := c.Audit(ctx)
	c.must(err)
	for i, r := range records {
		if r.Seq != uint64(i+1) {
			t.Fatalf("record %d has number %d", i+1, r.Seq)
		}
	}
}

// connects is how many tunnel keys were handed in.
func (c *company) connects(ctx context.Context) (n int) {
	c.t.Helper()
	records, err := c.Audit(ctx)
	c.must(err)
	for _, r := range records {
		if r.Kind == audit.KindConnect {
			n++
		}
	}
	return n
}

// TestStopDrains stops the gateway while a connection is open: nothing new gets
// in, what is open goes on, and who hangs up lets the gateway end at once.
func TestStopDrains(t *testing.T) {
	c := newCompany(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c.must(c.Anna.Login(ctx))
	c.until(http.StatusOK, "")
	desk, err := net.Dial("tcp", c.local(ctx, "desk"))
	c.must(err)
	defer desk.Close()
	lines := bufio.NewScanner(desk)
	says := func(what string) {
		t.Helper()
		c.must(desk.SetDeadline(time.Now().Add(5 * time.Second)))
		if _, err := fmt.Fprintln(desk, what); err != nil {
			t.Fatal(err)
		}
		if !lines.Scan() {
			t.Fatalf("the desk's connection ended: %v", lines.Err())
		}
	}
	lines.Scan() // the greeting
	says("before")
	ended, err := c.Stop("gateway")
	c.must(err)
	for range 10 {
		time.Sleep(100 * time.Millisecond)
		says("while it drains")
	}
	if status, _ := c.get(); status != 0 {
		t.Errorf("a new request was answered %d by a gateway that is to end", status)
	}
	select {
	case <-ended:
		t.Fatal("the gateway ended while a connection was open")
	default:
	}
	c.must(desk.Close())
	select {
	case <-ended:
	case <-ctx.Done():
		t.Fatal("the gateway did not end")
	}
	c.must(c.Again("gateway"))
	t.Logf("back after %s", c.until(http.StatusOK, ""))
}

// local is where an app's port is on Anna's laptop.
func (c *company) local(ctx context.Context, app string) string {
	c.t.Helper()
	out, err := c.Anna.Agent(ctx, "apps", "--json")
	c.must(err)
	var list struct {
		Items []struct {
			Name  string
			Local []struct{ Local string }
		}
	}
	c.must(json.Unmarshal(out, &list))
	for _, a := range list.Items {
		if a.Name == app && len(a.Local) > 0 {
			return a.Local[0].Local
		}
	}
	c.t.Fatalf("%s has no port on the laptop:\n%s", app, out)
	return ""
}

// waitPolicy waits until readiness says that about the policy.
func (c *company) waitPolicy(word string) {
	c.t.Helper()
	var last string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, c.Health+"/readyz", nil)
		c.must(err)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			last = err.Error()
			continue
		}
		var h struct{ Checks map[string]string }
		err = json.NewDecoder(resp.Body).Decode(&h)
		resp.Body.Close()
		if last = fmt.Sprint(h.Checks["policy"], err); strings.Contains(h.Checks["policy"], word) {
			return
		}
	}
	c.t.Fatalf("readiness never said %q about the policy, but %s", word, last)
}
