package proxy_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/proxy"
	"github.com/portvakt/portvakt/policy"
)

func TestUpstreamFaults(t *testing.T) {
	release := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer slow.Close()
	defer close(release)
	breaks := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/sized" {
			w.Header().Set("Content-Length", "1000")
		}
		_, _ = w.Write([]byte("the beginning"))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer breaks.Close()
	junk, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer junk.Close()
	go func() {
		for {
			c, err := junk.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "SSH-2.0-x\r\n")
			_ = c.Close()
		}
	}()
	e := newEcho(t)
	app := func(name string) string {
		return fmt.Sprintf("name: %s\nprotocol: http\nhosts: [%s.test]\nupstream: {{%s}}\nallow: [127.0.0.1/32]\naccess: [{anyone: true}]\n", name, name, name)
	}
	guarded := "name: guarded\nprotocol: http\nhosts: [guarded.test]\nupstream: {{ok}}\naccess: [{anyone: true}]\n"
	w := newWorld(t, []string{app("ok"), app("down"), app("slow"), app("breaks"), app("junk"), guarded}, map[string]string{
		"ok": e.URL, "down": "http://127.0.0.1:1", "slow": slow.URL, "breaks": breaks.URL, "junk": "http://" + junk.Addr().String(),
	}, func(c *proxy.Config) { c.Timeouts.ResponseHeader = 200 * time.Millisecond })

	for _, h2 := range []bool{false, true} {
		c := w.client(h2)
		for _, f := range []struct {
			app    string
			status int
			reason policy.Reason
		}{
			{"down", 502, policy.ReasonUpstreamUnavailable},
			{"slow", 504, policy.ReasonUpstreamUnavailable},
			{"junk", 502, policy.ReasonUpstreamUnavailable},
			{"guarded", 502, policy.ReasonUpstreamForbidden},
		} {
			res, body := get(t, c, "https://"+f.app+".test/", "Accept", "application/json")
			var d policy.Decision
			if err := json.Unmarshal([]byte(body), &d); err != nil || res.StatusCode != f.status || d.Reason != f.reason || d.Allow || d.ID == "" {
				t.Errorf("h2 %v, %s: %d %s (%v)", h2, f.app, res.StatusCode, body, err)
			}
			if res, _ := get(t, c, "https://ok.test/"); res.StatusCode != 200 {
				t.Errorf("the other app answers %d", res.StatusCode)
			}
		}
		for _, path := range []string{"/sized", "/chunked"} {
			res, err := c.Get("https://breaks.test" + path)
			if err != nil {
				continue // broken off before the head was flushed
			}
			b, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err == nil {
				t.Errorf("h2 %v, %s: a broken answer ended clean after %q", h2, path, b)
			}
		}
	}
	outcomes := map[string]int{}
	for _, r := range w.records(audit.KindUpstreamError, 12) {
		outcomes[r.App+" "+r.Outcome]++
	}
	for _, want := range []string{"down upstream_unavailable", "slow upstream_timeout", "junk upstream_unavailable", "guarded upstream_forbidden", "breaks upstream_broke_off"} {
		if outcomes[want] != 2 && outcomes[want] != 4 {
			t.Errorf("%q recorded %d times; all: %v", want, outcomes[want], outcomes)
		}
	}
	for _, s := range e.requests() {
		if s.Host != "ok.test" {
			t.Errorf("the guarded app was reached: %+v", s)
		}
	}
}

func TestNothingPassesWithoutARecord(t *testing.T) {
	e := newEcho(t)
	w := newWorld(t, []string{crmYAML, deskYAML}, map[string]string{"crm": e.URL, "desk": e.Listener.Addr().String()})
	c := w.client(false)
	if res, _ := get(t, c, "https://crm.test/"); res.StatusCode != 200 {
		t.Fatal(res.Status)
	}
	if err := w.log.Close(); err != nil {
		t.Fatal(err)
	}
	res, body := get(t, c, "https://crm.test/", "Accept", "application/json")
	if res.StatusCode != 503 || !strings.Contains(body, `"audit_unavailable"`) || res.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if conn, err := w.open("desk", 7000); err == nil {
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		if n, err := conn.Read(make([]byte, 1)); !isReset(err) {
			t.Errorf("a TCP flow without a record: %d, %v", n, err)
		}
	}
	if n := len(e.requests()); n != 1 {
		t.Errorf("the app saw %d requests", n)
	}
}

func TestRefusalKeepsTheConnection(t *testing.T) {
	e := newEcho(t)
	yaml := strings.Replace(crmYAML, "- groups: [sales]", "- groups: [sales]\n    methods: [GET]", 1)
	w := newWorld(t, []string{yaml}, map[string]string{"crm": e.URL})
	conn := w.tls("crm.test")
	_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
	br := bufio.NewReader(conn)
	for _, c := range []struct {
		method string
		want   int
	}{{"GET", 200}, {"POST", 403}, {"GET", 200}} {
		fmt.Fprintf(conn, "%s /export HTTP/1.1\r\nHost: crm.test\r\nContent-Length: 0\r\n\r\n", c.method)
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != c.want || res.Close {
			t.Fatalf("%s: %d, %v", c.method, res.StatusCode, err)
		}
	}
	if n := len(e.requests()); n != 2 {
		t.Errorf("the app saw %d requests", n)
	}
}

const deskYAML = `name: desk
protocol: tcp
ports: [7000]
upstream: {{desk}}
allow: [127.0.0.1/32]
visibility: explain
access: [{groups: [sales]}]
`

// tcpEcho is a desk: it echoes, and tells when a connection ends and how.
func tcpEcho(t *testing.T, ended chan<- error) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, err := io.Copy(c, c)
				if err == nil {
					_, _ = io.WriteString(c, "bye")
				}
				c.Close()
				ended <- err
			}()
		}
	}()
	return l.Addr().String()
}

func TestTCPFlow(t *testing.T) {
	ended := make(chan error, 4)
	w := newWorld(t, []string{deskYAML}, map[string]string{"desk": tcpEcho(t, ended)})
	c := w.dial("desk", 7000).(*net.TCPConn)
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	big := strings.Repeat("0123456789abcdef", 1<<16)
	go func() {
		_, _ = io.WriteString(c, big)
		_ = c.CloseWrite() // a half-closed connection goes on the other way
	}()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != big+"bye" {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the app saw %v", err)
	}
	r := w.records(audit.KindFlowClose, 1)[0]
	if r.BytesIn != int64(len(big)) || r.BytesOut != int64(len(big))+3 || r.Outcome != "done" {
		t.Errorf("closed with %+v", r)
	}
	if r := w.records(audit.KindFlowOpen, 1)[0]; r.Allow == nil || !*r.Allow || r.Device != "dev-1" {
		t.Errorf("opened with %+v", r)
	}
}

func TestTCPRefusals(t *testing.T) {
	ended := make(chan error, 4)
	up := tcpEcho(t, ended)
	down := strings.NewReplacer("name: desk", "name: down", "{{desk}}", "127.0.0.1:1").Replace(deskYAML)
	loop := strings.NewReplacer("name: desk", "name: loop", "allow: [127.0.0.1/32]\n", "").Replace(deskYAML)
	other := strings.NewReplacer("name: desk", "name: other", "[sales]", "[support]").Replace(deskYAML)
	w := newWorld(t, []string{deskYAML, down, loop, other}, map[string]string{"desk": up})
	for _, c := range []struct {
		app  string
		port uint16
	}{{"down", 7000}, {"loop", 7000}, {"other", 7000}, {"desk", 7999}} {
		conn, err := w.open(c.app, c.port)
		if err != nil {
			continue // reset before connect(2) returned
		}
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		n, err := conn.Read(make([]byte, 1))
		if n != 0 || !isReset(err) || errors.Is(err, io.EOF) {
			t.Errorf("%s:%d: read %d, %v; want a reset", c.app, c.port, n, err)
		}
	}
	select {
	case <-ended:
		t.Error("an app was reached")
	case <-time.After(50 * time.Millisecond):
	}
	outcomes := map[string]string{}
	for _, r := range w.records(audit.KindUpstreamError, 2) {
		outcomes[r.App] = r.Outcome
	}
	if outcomes["down"] != "upstream_unavailable" || outcomes["loop"] != "upstream_forbidden" {
		t.Errorf("recorded %v", outcomes)
	}
}

func ask(t *testing.T, c net.Conn, text string) (string, error) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if text != "" {
		if _, err := c.Write([]byte(text)); err != nil {
			return "", err
		}
	}
	buf := make([]byte, 65536)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

func TestLimits(t *testing.T) {
	e := newEcho(t)
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": e.URL}, func(c *proxy.Config) {
		c.Limits.DeviceConns, c.Limits.HeaderBytes = 3, 8<<10
		c.Timeouts.ReadHeader, c.Timeouts.Handshake = 300*time.Millisecond, 300*time.Millisecond
	})
	t.Run("large header", func(t *testing.T) {
		if got := w.raw("crm.test", "GET / HTTP/1.1\r\nHost: crm.test\r\nX: "+strings.Repeat("y", 20<<10)+"\r\n\r\n"); !strings.HasPrefix(got, "431") {
			t.Errorf("answered %.80s", got)
		}
	})
	t.Run("slow header", func(t *testing.T) {
		c := w.tls("crm.test")
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: ")
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !isReset(err) {
			t.Errorf("still open: %v", err)
		}
		c.Close()
	})
	t.Run("slow handshake and too many", func(t *testing.T) {
		time.Sleep(50 * time.Millisecond)
		var open []net.Conn
		for range 3 {
			open = append(open, w.dial("crm", 443))
		}
		time.Sleep(50 * time.Millisecond) // the proxy takes them in goroutines of its own
		c, err := w.open("crm", 443)
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(200 * time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); !isReset(err) {
				t.Errorf("a fourth connection stays open: %v", err)
			}
		}
		for _, c := range open {
			_ = c.SetDeadline(time.Now().Add(2 * time.Second))
			if _, err := c.Read(make([]byte, 1)); !isReset(err) {
				t.Errorf("a silent handshake stays open: %v", err)
			}
		}
		if res, _ := get(t, w.client(false), "https://crm.test/"); res.StatusCode != 200 {
			t.Errorf("afterwards: %d", res.StatusCode)
		}
	})
}

// A proxy that stops refuses what is new, lets go of what stays open after the
// drain, and leaves no goroutine (TestMain).
func TestStop(t *testing.T) {
	ended := make(chan error, 1)
	w := newWorld(t, []string{deskYAML}, map[string]string{"desk": tcpEcho(t, ended)})
	c := w.dial("desk", 7000)
	if got, err := ask(t, c, "hello"); err != nil || got != "hello" {
		t.Fatal(got, err)
	}
	began := time.Now()
	w.stop()
	if took := time.Since(began); took > slack*time.Second {
		t.Errorf("stopping took %v", took)
	}
	if _, err := ask(t, c, ""); err == nil {
		t.Error("an open flow outlives the proxy")
	}
	if c, err := w.open("desk", 7000); err == nil {
		if _, err := ask(t, c, ""); !isReset(err) {
			t.Errorf("a stopped proxy took a connection: %v", err)
		}
	}
}

func TestDropResetsIdleConnections(t *testing.T) {
	e := newEcho(t)
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": e.URL})
	c := w.tls("crm.test")
	w.proxy.Drop(w.device.Addresses[0])
	if _, err := ask(t, c, ""); !isReset(err) {
		t.Errorf("still open: %v", err)
	}
}
