package notary_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/portvakt/portvakt/gateway/audit/notary"
)

// witness is one by the specification: it cosigns a checkpoint only when the
// proof shows that it goes on from the one before.
type witness struct {
	t    *testing.T
	srv  *httptest.Server
	priv ed25519.PrivateKey
	key  string // as people are told it
	hash []byte

	mu    sync.Mutex
	log   note.Verifier
	size  int64
	root  tlog.Hash
	now   int64 // its clock; it goes on with each cosignature
	calls []string
	// instead, when set, answers; the request was taken if it says so.
	instead func(w http.ResponseWriter, take func() string) (answered bool)
}

const witnessName = "witness.example/w1"

func newWitness(t *testing.T) *witness {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	raw := append([]byte{4}, pub...)
	sum := sha256.Sum256(append([]byte(witnessName+"\n"), raw...))
	w := &witness{t: t, priv: priv, hash: sum[:4], now: 1_800_000_000, key: fmt.Sprintf("%s+%x+%s", witnessName, sum[:4], base64.StdEncoding.EncodeToString(raw))}
	w.srv = httptest.NewTLSServer(w)
	t.Cleanup(w.srv.Close)
	return w
}

func (w *witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/prefix/add-checkpoint" {
		http.Error(rw, "what is that?", http.StatusBadRequest)
		return
	}
	status, answer := 0, ""
	take := func() string {
		status, answer = w.add(string(body))
		return answer
	}
	if w.instead != nil && w.instead(rw, take) {
		return
	}
	take()
	w.calls = append(w.calls, strconv.Itoa(status))
	if status == http.StatusConflict {
		rw.Header().Set("Content-Type", "text/x.tlog.size")
	}
	rw.WriteHeader(status)
	_, _ = io.WriteString(rw, answer)
}

// add is add-checkpoint.
func (w *witness) add(body string) (int, string) {
	head, msg, ok := strings.Cut(body, "\n\n")
	lines := strings.Split(head, "\n")
	old, err := strconv.ParseInt(strings.TrimPrefix(lines[0], "old "), 10, 64)
	if !ok || err != nil || !strings.HasPrefix(lines[0], "old ") || len(lines) > 64 {
		return http.StatusBadRequest, "it is malformed\n"
	}
	n, err := note.Open([]byte(msg), note.VerifierList(w.log))
	if err != nil {
		return http.StatusForbidden, "it is not signed\n"
	}
	text := strings.Split(n.Text, "\n")
	size, err := strconv.ParseInt(text[1], 10, 64)
	root, rerr := tlog.ParseHash(text[2])
	if err != nil || rerr != nil || text[0] != fmt.Sprintf("portvakt.audit/v1/%08x", w.log.KeyHash()) || old > size {
		return http.StatusBadRequest, "it is no checkpoint of that log\n"
	}
	var proof tlog.TreeProof
	for _, l := range lines[1:] {
		h, err := tlog.ParseHash(l)
		if err != nil {
			return http.StatusBadRequest, "a hash is none\n"
		}
		proof = append(proof, h)
	}
	switch {
	case old != w.size:
		return http.StatusConflict, fmt.Sprintf("%d\n", w.size)
	case old == size && (root != w.root || len(proof) > 0):
		return http.StatusConflict, fmt.Sprintf("%d\n", w.size)
	case old == 0 && len(proof) > 0:
		return http.StatusUnprocessableEntity, "there is nothing to prove\n"
	case old > 0 && old < size && tlog.CheckTree(proof, size, root, old, w.root) != nil:
		return http.StatusUnprocessableEntity, "it does not go on from there\n"
	}
	w.size, w.root = size, root
	return http.StatusOK, w.sign(n.Text)
}

func (w *witness) sign(text string) string {
	w.now++
	sig := ed25519.Sign(w.priv, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", w.now, text))
	raw := binary.BigEndian.AppendUint64(bytes.Clone(w.hash), uint64(w.now))
	return "— " + witnessName + " " + base64.StdEncoding.EncodeToString(append(raw, sig...)) + "\n"
}

func (w *witness) set(fn func(http.ResponseWriter, func() string) bool) {
	w.mu.Lock()
	w.instead, w.calls = fn, nil
	w.mu.Unlock()
}

func (w *witness) answers() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.calls, " ")
}

func (w *witness) verifier() note.Verifier {
	w.t.Helper()
	v, err := notary.ParseWitness(w.key)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// client is the gateway's side, with a clock of its own.
type client struct {
	*notary.Witness
	clock atomic.Int64
	stop  func()
}

// witnessed signs what there is and lets a client run.
func (o *office) witnessed(w *witness) *client {
	o.t.Helper()
	o.mustSign()
	w.mu.Lock()
	w.log = o.verifier
	w.mu.Unlock()
	n, err := notary.New(notary.Config{LogFile: o.log, Dir: o.tree, KeyFile: o.key})
	if err != nil {
		o.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(w.srv.Certificate())
	c := &client{}
	c.Witness, err = n.Witness(notary.WitnessConfig{
		URL: w.srv.URL + "/prefix/", Key: w.key, TLS: &tls.Config{RootCAs: roots}, Every: time.Millisecond, Now: func() time.Time { return time.Unix(0, c.clock.Load()) },
	})
	if err != nil {
		o.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			o.t.Error(err)
		}
	})
	o.t.Cleanup(c.stop)
	return c
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not happen", what)
		}
	}
}

// cosigned waits until so many records are, and opens the kept checkpoint.
func (o *office) cosigned(w *witness, c *client, size int64) notary.Cosigned {
	o.t.Helper()
	until(o.t, fmt.Sprintf("cosigning of %d", size), func() bool { return c.Last().Size == size && c.Healthy() == nil })
	msg, err := os.ReadFile(filepath.Join(o.tree, notary.FileCosigned))
	if err != nil {
		o.t.Fatal(err)
	}
	kept, err := notary.OpenCosigned(msg, o.verifier, w.verifier())
	if err != nil || kept != c.Last() {
		o.t.Fatalf("kept is %+v, %v, want %+v", kept, err, c.Last())
	}
	return kept
}

func TestWitnessCosignsWhatGoesOn(t *testing.T) {
	o, w := newOffice(t), newWitness(t)
	o.write(3)
	c := o.witnessed(w)
	first := o.cosigned(w, c, 3)
	for _, n := range []int{1, 300, 7} { // over a tile's edge
		o.write(n)
		o.mustSign()
		o.cosigned(w, c, int64(o.records))
	}
	if got := w.answers(); got != "200 200 200 200" {
		t.Errorf("it answered %s", got)
	}
	// An idle log is shown anew: the cosignature says until when it was idle.
	last := c.Last()
	c.clock.Add(int64(5 * time.Minute))
	until(t, "another cosignature", func() bool { return c.Last().At.After(last.At) })
	if again := o.cosigned(w, c, last.Size); !again.At.After(first.At) || again.Root != last.Root {
		t.Errorf("%+v behind %+v", again, last)
	}
	// After a restart it goes on from what was kept; with that lost, from what
	// the witness says.
	c.stop()
	o.write(5)
	w.set(nil)
	c = o.witnessed(w)
	o.cosigned(w, c, int64(o.records))
	c.stop()
	if err := os.Remove(filepath.Join(o.tree, notary.FileCosigned)); err != nil {
		t.Fatal(err)
	}
	o.write(5)
	c = o.witnessed(w)
	o.cosigned(w, c, int64(o.records))
	if got := w.answers(); got != "200 409 200" {
		t.Errorf("it answered %s", got)
	}
	// What was cosigned is a checkpoint as any other.
	c.stop()
	msg, err := os.ReadFile(filepath.Join(o.tree, notary.FileCosigned))
	if err != nil {
		t.Fatal(err)
	}
	if rep, err := notary.Verify(o.log, o.tree, o.verifier, msg); err != nil || rep.Earlier != 1 {
		t.Errorf("%+v %v", rep, err)
	}
}

// Whatever the witness does, the newest cosigned checkpoint stays what it was,
// the fault is told, and it goes on afterwards.
func TestWitnessThatFails(t *testing.T) {
	o, w := newOffice(t), newWitness(t)
	o.write(3)
	c := o.witnessed(w)
	say := func(status int, text string) func(http.ResponseWriter, func() string) bool {
		return func(rw http.ResponseWriter, _ func() string) bool {
			rw.WriteHeader(status)
			_, _ = io.WriteString(rw, text)
			return true
		}
	}
	other := newWitness(t)
	for name, tt := range map[string]struct {
		do   func(http.ResponseWriter, func() string) bool
		want string
	}{
		"away":                  {say(503, "later"), "503"},
		"unknown log":           {say(404, "who?"), "does not know this log"},
		"unknown key":           {say(403, ""), "another key"},
		"a redirect":            {say(307, ""), "307"},
		"no signature":          {say(200, ""), "no verifiable signatures"},
		"nonsense":              {say(200, "— x y\n"), "answer"},
		"nonsense without end":  {say(200, strings.Repeat("x", 1<<20)), "answer"},
		"a text of its own":     {say(200, "\n\nother\n\n— a b\n"), "answer"},
		"no size":               {say(409, "busy\n"), "without the number"},
		"a size that goes down": {say(409, "0\n"), "number of records"},
		"answers that are lost": {func(rw http.ResponseWriter, take func() string) bool {
			take()
			panic(http.ErrAbortHandler)
		}, "EOF"},
		"another's signature": {func(rw http.ResponseWriter, _ func() string) bool {
			_, _ = io.WriteString(rw, other.sign("portvakt.audit/v1\n"))
			return true
		}, "signature"},
		"a signature of another text": {func(rw http.ResponseWriter, _ func() string) bool {
			_, _ = io.WriteString(rw, w.sign("portvakt.audit/v1\n"))
			return true
		}, "answer"},
	} {
		t.Run(name, func(t *testing.T) {
			before := o.cosigned(w, c, int64(o.records))
			w.set(tt.do)
			o.write(2)
			o.mustSign()
			until(t, "the fault", func() bool { return c.Healthy() != nil })
			if err := c.Healthy(); !strings.Contains(err.Error(), tt.want) || errors.Is(err, notary.ErrChanged) {
				t.Errorf("it says %v", err)
			}
			if c.Last() != before {
				t.Errorf("cosigned is %+v, was %+v", c.Last(), before)
			}
			w.set(nil)
			o.cosigned(w, c, int64(o.records))
		})
	}
	// Signatures of others are no harm, and are not kept.
	w.set(func(rw http.ResponseWriter, take func() string) bool {
		_, _ = io.WriteString(rw, other.sign("something else")+take())
		return true
	})
	o.write(1)
	o.mustSign()
	o.cosigned(w, c, int64(o.records))
}

// Who has the gateway and its key can sign another log, but the witness does not
// sign it, and what it signed before contradicts it.
func TestWitnessRefusesAnotherHistory(t *testing.T) {
	for name, rewrite := range map[string]func(*office){
		"a changed record": func(o *office) {
			o.change(func(ls []string) []string {
				ls[4] = strings.Replace(ls[4], "true", "false", 1)
				return ls
			})
			o.write(4)
		},
		"a record changed, as long as before": func(o *office) {
			o.change(func(ls []string) []string {
				ls[4] = strings.Replace(ls[4], "decision", "decisioN", 1)
				return ls
			})
		},
		"a shorter log": func(o *office) {
			o.change(func(ls []string) []string { return ls[:6] })
		},
	} {
		t.Run(name, func(t *testing.T) {
			o, w := newOffice(t), newWitness(t)
			o.write(10)
			c := o.witnessed(w)
			before := o.cosigned(w, c, 10)
			c.stop()
			kept, err := os.ReadFile(filepath.Join(o.tree, notary.FileCosigned))
			if err != nil {
				t.Fatal(err)
			}
			rewrite(o)
			for _, forget := range []bool{false, true} { // and what was cosigned
				o.takeOver()
				o.mustSign() // it signs the new history with its key
				if !forget {
					if err := os.WriteFile(filepath.Join(o.tree, notary.FileCosigned), kept, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				c = o.witnessed(w)
				until(t, "the refusal", func() bool { return c.Healthy() != nil })
				if err := c.Healthy(); !errors.Is(err, notary.ErrChanged) {
					t.Errorf("it says %v", err)
				}
				if got := c.Last(); got != before && !(forget && got.Size == 0) {
					t.Errorf("cosigned is %+v", got)
				}
				c.stop()
				if _, err := notary.Verify(o.log, o.tree, o.verifier); err != nil {
					t.Errorf("alone the log holds: %v", err)
				}
				if _, err := notary.Verify(o.log, o.tree, o.verifier, kept); !errors.Is(err, notary.ErrChanged) {
					t.Errorf("with what was cosigned: %v", err)
				}
			}
		})
	}
}

func FuzzOpenCosigned(f *testing.F) {
	pub, priv, err := ed25519.GenerateKey(bytes.NewReader(make([]byte, 32)))
	if err != nil {
		f.Fatal(err)
	}
	raw := append([]byte{4}, pub...)
	sum := sha256.Sum256(append([]byte(witnessName+"\n"), raw...))
	good := fmt.Sprintf("%s+%x+%s", witnessName, sum[:4], base64.StdEncoding.EncodeToString(raw))
	for _, key := range []string{good, "", "a+b+c", witnessName + "+00000000+" + strings.SplitN(good, "+", 3)[2], strings.Replace(good, "/w1", " w1", 1), "x+" + good} {
		f.Add(key, []byte("text"), []byte("sig"))
	}
	sig := ed25519.Sign(priv, []byte("cosignature/v1\ntime 7\ntext"))
	f.Add(good, []byte("text"), append(binary.BigEndian.AppendUint64(nil, 7), sig...))
	f.Fuzz(func(t *testing.T, key string, text, sig []byte) {
		v, err := notary.ParseWitness(key)
		if (err == nil) != (strings.TrimSpace(key) == good) && strings.HasPrefix(key, witnessName) {
			t.Errorf("%q: %v", key, err)
		}
		if err != nil || !v.Verify(text, sig) {
			return
		}
		at := binary.BigEndian.Uint64(sig)
		if key == good && !ed25519.Verify(pub, append(fmt.Appendf(nil, "cosignature/v1\ntime %d\n", at), text...), sig[8:]) {
			t.Errorf("%q is no signature of %q", sig, text)
		}
	})
}
