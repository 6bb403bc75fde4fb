package sink_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/export"
	"github.com/portvakt/portvakt/gateway/audit/sink"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type bench struct {
	t   *testing.T
	dir string
	log *audit.Log
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	l, err := audit.Open(audit.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &bench{t: t, dir: dir, log: l}
}

func (b *bench) write(n int) {
	b.t.Helper()
	allow := true
	for range n {
		if err := b.log.Append(&audit.Record{Kind: audit.KindDecision, Allow: &allow, App: "crm", Message: strings.Repeat("x", rand.IntN(200)), Detail: map[string]string{"a": "b\nc"}}); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bench) config(kind, format, to string) sink.Config {
	return sink.Config{Name: "s", Type: kind, Format: format, To: to, Decisions: export.Log{File: b.log.Path(), Reveal: b.log.Reveal}, Dir: filepath.Join(b.dir, "sinks"), Node: "gw1", Record: b.log.Append, Retry: 10 * time.Millisecond}
}

// during runs a sink anew until fn returns.
func (b *bench) during(cfg sink.Config, fn func(*sink.Sink)) {
	b.t.Helper()
	s, err := sink.New(cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	fn(s)
	cancel()
	if err := <-done; err != nil {
		b.t.Error(err)
	}
}

func (b *bench) until(what string, ok func() bool) {
	b.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("%s did not happen", what)
		}
	}
}

// inbox is what a receiver has, in the order it came.
type inbox struct {
	mu   sync.Mutex
	seqs []uint64
}

func (i *inbox) add(seq uint64) {
	i.mu.Lock()
	i.seqs = append(i.seqs, seq)
	i.mu.Unlock()
}

func (i *inbox) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.seqs)
}

// missing returns the first number below n that did not come, 0 if none. What
// came first of each number must have come in order.
func (i *inbox) missing(t *testing.T, n uint64) uint64 {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	seen := map[uint64]bool{}
	last := uint64(0)
	for _, s := range i.seqs {
		if !seen[s] && s != last+1 {
			t.Fatalf("record %d came first behind %d", s, last)
		}
		if !seen[s] {
			last = s
		}
		seen[s] = true
	}
	for s := uint64(1); s <= n; s++ {
		if !seen[s] {
			return s
		}
	}
	return 0
}

var seqOf = regexp.MustCompile(`"seq":(\d+)`)

func (i *inbox) read(r io.Reader) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if m := seqOf.FindStringSubmatch(sc.Text()); m != nil {
			n, _ := strconv.ParseUint(m[1], 10, 64)
			i.add(n)
		}
	}
}

// A file has every record once, whatever moment the gateway was killed at.
func TestFileHasEachRecordOnce(t *testing.T) {
	b := newBench(t)
	to := filepath.Join(b.dir, "out.jsonl")
	cfg := b.config("file", "jsonl", to)
	var states [][2][]byte // the file and the position, at some moments
	total := uint64(0)
	for range 5 {
		b.write(700)
		total += 700
		b.during(cfg, func(s *sink.Sink) {
			b.until("sending", func() bool { return s.Sent() == total })
		})
		file, err := os.ReadFile(to)
		if err != nil {
			t.Fatal(err)
		}
		at, err := os.ReadFile(filepath.Join(cfg.Dir, "s.json"))
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, [2][]byte{file, at})
	}
	// Killed between the file's sync and the position's: the file is newer. Also
	// in the middle of a line.
	for _, at := range states[:4] {
		file := states[4][0]
		if err := os.WriteFile(to, file[:len(file)-17], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(cfg.Dir, "s.json"), at[1], 0o600); err != nil {
			t.Fatal(err)
		}
		b.during(cfg, func(s *sink.Sink) {
			b.until("sending", func() bool { return s.Sent() == total })
		})
		got, err := os.ReadFile(to)
		if err != nil || string(got) != string(states[4][0]) {
			t.Fatalf("the file differs from what an undisturbed sink wrote: %v", err)
		}
	}
}

// What a crash left behind the kept size goes, also when what comes in its place is
// shorter: personal data may have been erased since.
func TestFileKeepsNothingOfACrash(t *testing.T) {
	b := newBench(t)
	b.write(5)
	out := filepath.Join(b.dir, "out")
	cfg := b.config("file", "jsonl", out)
	b.during(cfg, func(s *sink.Sink) { b.until("sending", func() bool { return s.Sent() == 5 }) })
	f, err := os.OpenFile(out, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(strings.Repeat("x", 10_000))
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	b.write(1)
	b.during(cfg, func(s *sink.Sink) { b.until("sending", func() bool { return s.Sent() == 6 }) })
	text, err := os.ReadFile(out)
	if err != nil || bytes.Count(text, []byte("\n")) != 6 || bytes.Contains(text, []byte(strings.Repeat("x", 300))) {
		t.Errorf("%v %q", err, text)
	}
}

// Where a receiver sends us on to gets neither the records nor the token.
func TestRedirectsAreNotFollowed(t *testing.T) {
	b := newBench(t)
	b.write(1)
	other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was sent something") }))
	defer other.Close()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	}))
	defer srv.Close()
	for _, kind := range []string{"webhook", "otlp"} {
		cfg := b.config(kind, "jsonl", srv.URL)
		cfg.CAFile = caFile(t, b.dir, srv) // the other has the same certificate
		b.during(cfg, func(s *sink.Sink) {
			b.until("the fault", func() bool { return s.Healthy() != nil })
			if err := s.Healthy(); !strings.Contains(err.Error(), "307") {
				t.Error(err)
			}
		})
	}
}

// What a file held before the sink knew it stays.
func TestFileThatWasThereBefore(t *testing.T) {
	b := newBench(t)
	to := filepath.Join(b.dir, "out.jsonl")
	if err := os.WriteFile(to, []byte("mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.write(2)
	b.during(b.config("file", "jsonl", to), func(s *sink.Sink) {
		b.until("sending", func() bool { return s.Sent() == 2 })
	})
	got, err := os.ReadFile(to)
	if err != nil || !strings.HasPrefix(string(got), "mine\n{") || strings.Count(string(got), "\n") != 3 {
		t.Errorf("%v: %s", err, got)
	}
}

func TestFileThatIsRotatedOrAway(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(b.dir, "out")
	to := filepath.Join(dir, "out.jsonl")
	b.write(3)
	b.during(b.config("file", "jsonl", to), func(s *sink.Sink) {
		b.until("the fault", func() bool { return s.Healthy() != nil })
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		b.until("sending", func() bool { return s.Sent() == 3 && s.Healthy() == nil })
		if err := os.Rename(to, to+".1"); err != nil {
			t.Fatal(err)
		}
		b.write(2)
		b.until("sending", func() bool { return s.Sent() == 5 })
	})
	var in inbox
	for _, name := range []string{to + ".1", to} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		in.read(f)
		f.Close()
	}
	if fmt.Sprint(in.seqs) != "[1 2 3 4 5]" {
		t.Errorf("records %v", in.seqs)
	}
}

// A webhook that fails, half-reads and dies gets everything, in order.
func TestWebhookGetsEverything(t *testing.T) {
	b := newBench(t)
	var in inbox
	var tries int
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tries++
		if r.Header.Get("Authorization") != "Bearer t0ken" || r.Header.Get("Portvakt-Node") != "gw1" || r.Header.Get("Portvakt-Records") == "" {
			t.Errorf("headers %v", r.Header)
		}
		switch tries {
		case 1:
			http.Error(w, "not now", http.StatusServiceUnavailable)
		case 2:
			in.read(io.LimitReader(r.Body, 900))
			panic(http.ErrAbortHandler)
		case 3:
			http.Redirect(w, r, "https://elsewhere.invalid/", http.StatusTemporaryRedirect)
		default:
			in.read(r.Body)
		}
	}))
	defer srv.Close()
	srv.Config.ErrorLog = nil
	token := filepath.Join(b.dir, "token")
	if err := os.WriteFile(token, []byte("t0ken\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := b.config("webhook", "jsonl", srv.URL)
	cfg.CAFile, cfg.TokenFile = caFile(t, b.dir, srv), token
	b.write(1200)
	b.during(cfg, func(s *sink.Sink) {
		b.until("the fault", func() bool { return s.Healthy() != nil })
		b.until("sending", func() bool { return s.Sent() == 1200 })
	})
	b.write(1)
	b.during(cfg, func(s *sink.Sink) { b.until("sending", func() bool { return s.Sent() == 1201 }) })
	if m := in.missing(t, 1201); m != 0 {
		t.Errorf("record %d did not come", m)
	}
}

func TestWebhookOfAStrangerGetsNothing(t *testing.T) {
	b := newBench(t)
	b.write(1)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was sent something") }))
	defer srv.Close()
	b.during(b.config("webhook", "jsonl", srv.URL), func(s *sink.Sink) {
		b.until("the fault", func() bool { return s.Healthy() != nil })
	})
}

func caFile(t *testing.T, dir string, srv *httptest.Server) string {
	t.Helper()
	path := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// syslogServer reads RFC 5425 frames; of its first connections it reads only
// some messages and dies, with more in its buffers.
type syslogServer struct {
	inbox
	t     *testing.T
	ln    net.Listener
	patch []int // how many messages a connection lives; then for ever
	wg    sync.WaitGroup
}

func (s *syslogServer) run() {
	for n := 0; ; n++ {
		c, err := s.ln.Accept()
		if err != nil {
			return
		}
		limit := 1 << 30
		if n < len(s.patch) {
			limit = s.patch[n]
		}
		s.wg.Go(func() { s.serve(c, limit) })
	}
}

func (s *syslogServer) serve(c net.Conn, limit int) {
	defer c.Close()
	br := bufio.NewReaderSize(c, 16)
	for range limit {
		size, err := br.ReadString(' ')
		if err != nil {
			return
		}
		n, err := strconv.Atoi(strings.TrimSpace(size))
		if err != nil || n <= 0 || n > 1<<20 {
			s.t.Errorf("frame length %q", size)
			return
		}
		msg := make([]byte, n)
		if _, err := io.ReadFull(br, msg); err != nil {
			return
		}
		if !syslogMessage.Match(msg) {
			s.t.Errorf("message %q", msg)
			return
		}
		m := seqOf.FindSubmatch(msg)
		seq, _ := strconv.ParseUint(string(m[1]), 10, 64)
		s.add(seq)
	}
	time.Sleep(50 * time.Millisecond) // so that more lies unread when it dies
}

var syslogMessage = regexp.MustCompile(`^<110>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z gw1 portvakt-gateway - decision \[portvakt@32473 seq="\d+"\] \{"node":"gw1","seq":\d+,[^\n]*\}$`)

func TestSyslogGetsEverything(t *testing.T) {
	b := newBench(t)
	web := httptest.NewTLSServer(nil) // for its certificate
	defer web.Close()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: web.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	srv := &syslogServer{t: t, ln: ln, patch: []int{0, 3, 700, 1}}
	srv.wg.Go(srv.run)
	defer func() { ln.Close(); srv.wg.Wait() }()
	cfg := b.config("syslog", "jsonl", ln.Addr().String())
	cfg.CAFile = caFile(t, b.dir, web)
	const total = 3000
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		for range total / 100 {
			b.write(100)
			time.Sleep(10 * time.Millisecond)
		}
	}()
	b.during(cfg, func(s *sink.Sink) {
		<-stop
		b.until("sending", func() bool { return s.Sent() == total })
	})
	b.until("reading", func() bool { return srv.missing(t, total) == 0 })
}

// A sink that cannot write says so once, and the gateway's end is no recovery.
func TestTheEndIsNoRecovery(t *testing.T) {
	b := newBench(t)
	b.write(1)
	var said bytes.Buffer
	cfg := b.config("file", "jsonl", filepath.Join(b.dir, "missing", "out"))
	cfg.Log = slog.New(slog.NewTextHandler(&said, nil))
	b.during(cfg, func(s *sink.Sink) { b.until("a failure", func() bool { return s.Healthy() != nil }) })
	if text := said.String(); !strings.Contains(text, "does not take records") || strings.Contains(text, "takes records again") {
		t.Errorf("it said:\n%s", text)
	}
}

func TestPositionThatCannotBe(t *testing.T) {
	b := newBench(t)
	b.write(5)
	cfg := b.config("file", "jsonl", filepath.Join(b.dir, "out"))
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(cfg.Dir, "s.json")
	for _, text := range []string{"", "nonsense", `{"seq":1,"offset":-1}`, `{"sequence":1}`} {
		if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := sink.New(cfg); err == nil || !strings.Contains(err.Error(), "remove it") {
			t.Errorf("%q: %v", text, err)
		}
	}
	for text, want := range map[string]string{
		`{"seq":2,"segment":1,"offset":0,"size":0}`:      "does not go on with record 3",
		`{"seq":5,"segment":1,"offset":999999,"size":0}`: "shorter",
		`{"seq":9,"segment":0,"offset":0,"size":0}`:      "shorter",
	} {
		if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b.during(cfg, func(s *sink.Sink) {
			b.until("the fault", func() bool { return s.Healthy() != nil })
			if err := s.Healthy(); !strings.Contains(err.Error(), want) || errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %v", text, err)
			}
		})
	}
}
