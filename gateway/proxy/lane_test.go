package proxy_test

import (
	"context"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// mailboxes is an app that knows its visitors by the connection, as Negotiate
// and NTLM make it, and counts the connections it has.
type mailboxes struct {
	*httptest.Server
	mu   sync.Mutex
	who  map[net.Conn]string
	made int
}

type mailConn struct{}

func newMailboxes(t *testing.T, kind string) (m *mailboxes, yaml string) {
	m = &mailboxes{who: map[net.Conn]string{}}
	m.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := r.Context().Value(mailConn{}).(net.Conn)
		m.mu.Lock()
		defer m.mu.Unlock()
		if a := r.Header.Get("Authorization"); a != "" {
			m.who[c] = a
		}
		if m.who[c] == "" {
			w.Header().Set("WWW-Authenticate", "NTLM")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, "mailbox of "+m.who[c])
	}))
	m.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.made++
		m.who[c] = ""
		return context.WithValue(ctx, mailConn{}, c)
	}
	m.Config.ConnState = func(c net.Conn, s http.ConnState) {
		if s == http.StateClosed {
			m.mu.Lock()
			defer m.mu.Unlock()
			delete(m.who, c)
		}
	}
	yaml = "name: owa\nprotocol: http\nhosts: [owa.test]\nallow: [127.0.0.0/8]\nwebsocket: true\naccess: [{anyone: true}]\nupstream: {{owa}}\n"
	if kind == "http" {
		m.Start()
	} else {
		m.EnableHTTP2 = kind == "h2"
		m.StartTLS()
		yaml += "upstream_ca_file: " + caFile(t, m.Server) + "\n"
	}
	t.Cleanup(m.Close)
	return m, yaml
}

// caFile is a file with what an app's certificate is checked by.
func caFile(t *testing.T, s *httptest.Server) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func (m *mailboxes) open() (open, made int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.who), m.made
}

// TestConnectionAuth: who logged in to an app by the connection is nobody else's
// door, whatever the app speaks and by whichever road a request goes.
func TestConnectionAuth(t *testing.T) {
	for _, kind := range []string{"http", "https", "h2"} {
		t.Run(kind, func(t *testing.T) {
			m, yaml := newMailboxes(t, kind)
			w := newWorld(t, []string{yaml}, map[string]string{"owa": m.URL})
			socket := []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version", "13", "Origin", "https://owa.test"}
			roads := [][]string{nil, socket} // http goes two
			ask := func(c *http.Client, want string, header ...string) {
				t.Helper()
				for _, road := range roads {
					res, body := get(t, c, "https://owa.test/", append(header, road...)...)
					if want == "" && res.StatusCode != http.StatusUnauthorized || want != "" && body != "mailbox of "+want {
						t.Errorf("upgrade %v: %d %q, want %q", road != nil, res.StatusCode, body, want)
					}
				}
			}
			asa := w.client(false)
			ask(asa, "asa", "Authorization", "asa")
			ask(asa, "asa")                     // the connection says who
			if _, made := m.open(); made != 2 { // http.Transport keeps apart what asks for an upgrade
				t.Errorf("%d connections for one login", made)
			}
			w.revoke()
			w.subject.ID, w.subject.Name = "u2", "Mallory"
			w.login()
			ask(w.client(false), "") // another person
			ask(asa, "")             // another person, on the device's old connection
			w.revoke()
			w.subject.ID, w.subject.Name = "u1", "Åsa"
			w.login()
			ask(w.client(false), "") // a new login of the same person
		})
	}
}

func TestConnectionsEndWithTheLogin(t *testing.T) {
	for _, kind := range []string{"http", "https", "h2"} {
		t.Run(kind, func(t *testing.T) {
			m, yaml := newMailboxes(t, kind)
			w := newWorld(t, []string{yaml}, map[string]string{"owa": m.URL})
			inner := w.device.Addresses[0]
			for name, end := range map[string]func(){
				"session": func() { w.proxy.Forget(inner, w.session.ID) },
				"device":  func() { w.proxy.Drop(inner) },
			} {
				get(t, w.client(false), "https://owa.test/", "Authorization", "asa")
				time.Sleep(20 * time.Millisecond) // for http.Transport to take it back
				w.proxy.Forget(inner, "s-another")
				if open, _ := m.open(); open != 1 {
					t.Fatalf("%s: %d connections wait", name, open)
				}
				end()
				open := 1
				for try := 0; open > 0 && try < 300; try++ {
					time.Sleep(10 * time.Millisecond)
					open, _ = m.open()
				}
				if open > 0 {
					t.Errorf("%s: %d connections outlive it", name, open)
				}
			}
		})
	}
}
