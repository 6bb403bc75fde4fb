package proxy_test

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// witness is an app of somebody else's making that tells what reached it.
type witness struct {
	url      string
	requests func() []seen
	yaml     string // more of the app's file
}

// witnesses are an app in Go, one in Python, and nginx in front of one in Go;
// and, for the other road through the gateway, one in Go behind TLS that speaks
// HTTP/1.1 or HTTP/2.
var witnesses = map[string]func(*testing.T) witness{
	"go":     func(t *testing.T) witness { e := newEcho(t); return witness{url: e.URL, requests: e.requests} },
	"nginx":  newNginx,
	"python": newPython,
	"https":  func(t *testing.T) witness { return newSecureEcho(t, false) },
	"h2":     func(t *testing.T) witness { return newSecureEcho(t, true) },
}

func newSecureEcho(t *testing.T, h2 bool) witness {
	e := &echo{}
	e.Server = httptest.NewUnstartedServer(http.HandlerFunc(e.serve))
	e.Config.DisableGeneralOptionsHandler = true
	e.EnableHTTP2 = h2
	e.StartTLS()
	t.Cleanup(e.Close)
	return witness{url: e.URL, requests: e.requests, yaml: "upstream_ca_file: " + caFile(t, e.Server) + "\n"}
}

// requestHash is what docs/audit.md tells an app to compute of what it sees.
func (s seen) requestHash(app string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "portvakt-request-2\n%s\n%s\nhttps://%s:443%s\n", app, s.Method, s.Host, s.URI))
	return hex.EncodeToString(sum[:])
}

// run starts a program that ends with the test, however that ends.
func run(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

func find(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("%s is not installed", program)
	}
	return path
}

func newPython(t *testing.T) witness {
	cmd := exec.Command(find(t, "python3"), "-u", "testdata/witness.py")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	run(t, cmd)
	_ = w.Close()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 4<<20)
	if !lines.Scan() {
		t.Fatal("Python's app does not start")
	}
	url := "http://127.0.0.1:" + lines.Text()
	var mu sync.Mutex
	var all []seen
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines.Scan() {
			var s seen
			if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
				s.URI = "unreadable: " + lines.Text()
			}
			mu.Lock()
			all = append(all, s)
			mu.Unlock()
		}
	})
	t.Cleanup(func() { _ = r.Close(); reading.Wait() }) // before the program ends; it only writes to who reads
	return witness{url: url, requests: func() []seen {
		mu.Lock()
		defer mu.Unlock()
		return append([]seen(nil), all...)
	}}
}

// newNginx passes on what it gets, also names that it would drop by itself. Its
// access log has what it was asked, readable or not; the headers are as the app
// behind it got them.
func newNginx(t *testing.T) witness {
	program, behind, dir := find(t, "nginx"), newEcho(t), t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	conf := strings.NewReplacer("DIR", dir, "ADDR", addr, "BEHIND", behind.URL).Replace(`daemon off; master_process off; pid DIR/pid; error_log DIR/error.log;
events {}
http {
  log_format seen escape=json '{"Method":"$request_method","URI":"$request_uri","Host":"$http_host"}';
  access_log DIR/access.log seen;
  client_body_temp_path DIR/a; proxy_temp_path DIR/b; fastcgi_temp_path DIR/c; uwsgi_temp_path DIR/d; scgi_temp_path DIR/e;
  keepalive_requests 1000000; underscores_in_headers on; ignore_invalid_headers off; large_client_header_buffers 8 64k;
  server {
    listen ADDR;
    location / { proxy_pass BEHIND; proxy_http_version 1.1; proxy_set_header Host $http_host; proxy_set_header Connection ""; }
  }
}
`)
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-p", dir, "-c", "nginx.conf", "-e", filepath.Join(dir, "error.log"))
	run(t, cmd)
	for range 500 {
		if c, err := net.Dial("tcp", addr); err == nil {
			_ = c.Close()
			return witness{url: "http://" + addr, requests: func() []seen { return accessLog(t, dir, behind) }}
		}
		time.Sleep(10 * time.Millisecond)
	}
	text, _ := os.ReadFile(filepath.Join(dir, "error.log"))
	t.Fatalf("nginx does not start: %s", text)
	return witness{}
}

func accessLog(t *testing.T, dir string, behind *echo) (all []seen) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "access.log"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var s seen
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			s.URI = "unreadable: " + line
		}
		if s.Method == "" && s.URI == "" && s.Host == "" {
			continue // a connection without a request, such as the one that waited for the start
		}
		all = append(all, s)
	}
	for _, s := range behind.requests() {
		for i := range all {
			if all[i].Header == nil && all[i].Method == s.Method && all[i].URI == s.URI {
				all[i].Header, all[i].Trailer, all[i].Body = s.Header, s.Trailer, s.Body
				break
			}
		}
	}
	return all
}
