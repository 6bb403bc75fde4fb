package sink_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/sink"
)

// listen begins a server of that certificate, on an address of another or on a new
// one.
func listen(t *testing.T, web *httptest.Server, at string) *syslogServer {
	t.Helper()
	ln, err := tls.Listen("tcp", at, &tls.Config{Certificates: web.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	return &syslogServer{t: t, ln: ln}
}

// What a syslog server acknowledged and did not read before it died goes out again
// also when the gateway ended before it could see that.
func TestSyslogDiesUnreadAndTheGatewayEnds(t *testing.T) {
	for _, killed := range []bool{false, true} {
		b := newBench(t)
		web := httptest.NewTLSServer(nil) // for its certificate
		defer web.Close()
		dead := listen(t, web, "127.0.0.1:0")
		address := dead.ln.Addr().String()
		cfg := b.config("syslog", "jsonl", address)
		cfg.CAFile = caFile(t, b.dir, web)
		b.write(200)
		reset := make(chan error, 1)
		over := make(chan struct{})
		go func() { // shakes hands, and never reads what comes then
			c, err := dead.ln.Accept()
			if err == nil {
				err = c.(*tls.Conn).Handshake()
			}
			if err != nil {
				reset <- err
				return
			}
			<-over
			tcp := c.(*tls.Conn).NetConn().(*net.TCPConn)
			if err = tcp.SetLinger(0); err == nil {
				err = tcp.Close()
			}
			reset <- err
		}()
		var kept []byte
		position := filepath.Join(cfg.Dir, "s.json")
		b.during(cfg, func(s *sink.Sink) {
			b.until("sending", func() bool { return s.Sent() == 200 })
			var err error
			if kept, err = os.ReadFile(position); err != nil {
				t.Fatal(err)
			}
			close(over)
			if err := <-reset; err != nil {
				t.Fatal(err)
			}
		})
		if killed { // what its end kept is not there either
			if err := os.WriteFile(position, kept, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		dead.ln.Close()
		srv := listen(t, web, address)
		srv.wg.Go(srv.run)
		b.write(10)
		b.during(cfg, func(s *sink.Sink) {
			b.until("sending", func() bool { return s.Sent() == 210 })
		})
		b.until("reading", func() bool { return srv.count() >= 210 || srv.count() == 10 })
		if m := srv.missing(t, 210); m != 0 {
			t.Errorf("killed: %t: record %d did not come", killed, m)
		}
		// An end in order repeats nothing. (Of a server that is slow to say that it has
		// read all, the end is not.)
		inOrder := func() bool {
			now, err := os.ReadFile(position)
			return err == nil && !bytes.Contains(now, []byte("unread"))
		}
		b.until("an end in order", func() bool {
			if !inOrder() {
				before := srv.count()
				b.during(cfg, func(*sink.Sink) { b.until("sending again", func() bool { return srv.count() > before }) })
			}
			return inOrder()
		})
		b.until("reading", func() bool { return srv.missing(t, 210) == 0 })
		n := srv.count()
		b.write(1)
		b.during(cfg, func(s *sink.Sink) {
			b.until("sending", func() bool { return s.Sent() == 211 })
		})
		b.until("reading", func() bool { return srv.missing(t, 211) == 0 })
		if got := srv.count() - n; got != 1 {
			t.Errorf("killed: %t: %d records came for one", killed, got)
		}
		srv.ln.Close()
		srv.wg.Wait()
	}
}

// A sink that ends before it could look at the log keeps what goes out again.
func TestWhatIsUnreadIsKept(t *testing.T) {
	b := newBench(t)
	b.write(2)
	cfg := b.config("syslog", "jsonl", "127.0.0.1:1")
	position := filepath.Join(cfg.Dir, "s.json")
	text := []byte(`{"seq":2,"segment":1,"offset":1,"size":0,"record":{"segment":1,"offset":0},"hash":"00","unread":1}`)
	if err := errors.Join(os.MkdirAll(cfg.Dir, 0o700), os.WriteFile(position, text, 0o600)); err != nil {
		t.Fatal(err)
	}
	b.during(cfg, func(s *sink.Sink) { b.until("the fault", func() bool { return s.Healthy() != nil }) })
	if now, err := os.ReadFile(position); err != nil || !bytes.Equal(now, text) {
		t.Errorf("%s %v", now, err)
	}
}

// What is to go out again and was removed since had arrived, for all that is known:
// nothing is missed.
func TestUnreadAndRemoved(t *testing.T) {
	b := newBench(t)
	web := httptest.NewTLSServer(nil) // for its certificate
	defer web.Close()
	srv := listen(t, web, "127.0.0.1:0")
	srv.wg.Go(srv.run)
	defer func() { srv.ln.Close(); srv.wg.Wait() }()
	cfg := b.config("syslog", "jsonl", srv.ln.Addr().String())
	cfg.CAFile = caFile(t, b.dir, web)
	b.write(30)
	if err := b.log.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(b.log.Path())
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	position := []byte(`{"seq":25,"segment":0,"offset":0,"size":0,"record":{"segment":0,"offset":0},"unread":5}`)
	if err := errors.Join(
		os.WriteFile(b.log.Path(), bytes.Join(lines[20:], nil), 0o600), // 1 to 20 were removed
		os.MkdirAll(cfg.Dir, 0o700),
		os.WriteFile(filepath.Join(cfg.Dir, "s.json"), position, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	cfg.Record = func(r *audit.Record) error {
		t.Errorf("recorded: %+v", r)
		return nil
	}
	b.during(cfg, func(s *sink.Sink) {
		b.until("sending", func() bool { return srv.count() == 10 })
		if n := s.Missed(); n != 0 {
			t.Errorf("%d records are missed", n)
		}
	})
}
