package notary

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	witnessEvery   = 10 * time.Second
	witnessTimeout = 30 * time.Second
	witnessAgain   = time.Second // after a failure; twice that after the next
	witnessBackoff = 5 * time.Minute
	// witnessAnew is how often an idle log is shown again: so its latest
	// cosignature says that nothing was added meanwhile.
	witnessAnew  = 5 * time.Minute
	maxCosigners = 16 << 10 // bytes of an answer
	witnessTries = 3        // while the tree moves on under the proof
)

// WitnessConfig says who the witness is. URL and Key are required.
type WitnessConfig struct {
	URL string // add-checkpoint is below it
	Key string // as ParseWitness reads it
	TLS *tls.Config
	// Every is how often a checkpoint that is new is shown; zero means 10 s.
	Every time.Duration
	Now   func() time.Time
	Log   *slog.Logger
}

// Witness shows the checkpoints of a log to somebody outside, who signs each
// that goes on from the one before (C2SP tlog-witness). Who has full control of
// the gateway can then rewrite nothing that was cosigned. Nothing waits for it.
// Run it from one goroutine; the rest may be called from any.
type Witness struct {
	cfg      WitnessConfig
	dir      string
	log, key note.Verifier
	client   *http.Client
	asked    time.Time // when it last answered

	// mu guards what others ask for.
	mu   sync.Mutex
	last Cosigned
	down error
}

// Witness prepares for a witness of this notary's checkpoints. It connects to
// nothing.
func (n *Notary) Witness(cfg WitnessConfig) (*Witness, error) {
	if cfg.Every == 0 {
		cfg.Every = witnessEvery
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	w := &Witness{cfg: cfg, dir: n.cfg.Dir}
	var err error
	if w.key, err = ParseWitness(cfg.Key); err != nil {
		return nil, err
	}
	if w.log, err = ParseVerifier(n.public); err != nil {
		return nil, err
	}
	w.client = &http.Client{
		Timeout:   witnessTimeout,
		Transport: &http.Transport{TLSClientConfig: cfg.TLS, ForceAttemptHTTP2: true, Proxy: http.ProxyFromEnvironment, IdleConnTimeout: time.Minute},
		// Who it is was said in the configuration.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	msg, err := os.ReadFile(filepath.Join(w.dir, FileCosigned))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("reading the cosigned checkpoint: %w", err)
	}
	// One of another witness, or of a key before this one, is nothing to go on
	// from: the witness says what it knows.
	if c, err := OpenCosigned(msg, w.log, w.key); err == nil {
		w.last = c
	}
	return w, nil
}

// Last is the newest checkpoint that was cosigned; the zero one before the first.
func (w *Witness) Last() Cosigned {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// Healthy returns nil, or why the latest checkpoint is not cosigned.
func (w *Witness) Healthy() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.down
}

// Run shows what is new until ctx is done. A witness that is away or refuses is
// asked again, ever more rarely.
func (w *Witness) Run(ctx context.Context) error {
	defer w.client.CloseIdleConnections()
	first := min(w.cfg.Every, witnessAgain)
	backoff := first
	for {
		err := w.step(ctx)
		if ctx.Err() != nil {
			return nil
		}
		w.tell(err)
		wait := w.cfg.Every
		if err != nil {
			wait, backoff = backoff, min(2*backoff, witnessBackoff)
		} else {
			backoff = first
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

func (w *Witness) tell(err error) {
	w.mu.Lock()
	was := w.down
	w.down = err
	w.mu.Unlock()
	switch {
	case err != nil && (was == nil || errors.Is(err, ErrChanged) != errors.Is(was, ErrChanged)):
		w.cfg.Log.Error("the witness does not cosign the decision log", "err", err)
	case err == nil && was != nil:
		w.cfg.Log.Info("the witness cosigns the decision log again")
	}
}

// step shows the latest checkpoint, if there is reason to.
func (w *Witness) step(ctx context.Context) error {
	for range witnessTries {
		msg, err := os.ReadFile(filepath.Join(w.dir, FileCheckpoint))
		if errors.Is(err, os.ErrNotExist) {
			return errors.New("the log has no checkpoint yet to show to the witness")
		}
		if err != nil {
			return fmt.Errorf("reading the checkpoint: %w", err)
		}
		c, err := OpenCheckpoint(msg, w.log)
		if err != nil {
			return err
		}
		known := w.Last().Size
		if c.Size == known && !w.asked.IsZero() && w.cfg.Now().Sub(w.asked) < witnessAnew {
			return nil
		}
		if err = w.show(ctx, msg, c, known); !errors.Is(err, errMovedOn) {
			return err
		}
	}
	return errMovedOn
}

var errMovedOn = errors.New("the audit tree is not the one its checkpoint signs; trying again")

// show submits a checkpoint to a witness that is believed to know the first
// known records; it says so when it knows others.
func (w *Witness) show(ctx context.Context, msg []byte, c Checkpoint, known int64) error {
	for range 2 {
		if known > c.Size {
			return fmt.Errorf("%w: the witness has cosigned %d records, and the log's own checkpoint is over %d", ErrChanged, known, c.Size)
		}
		sigs, knows, err := w.submit(ctx, msg, c, known)
		if err != nil {
			return err
		}
		if sigs != nil {
			return w.take(msg, sigs, c)
		}
		switch {
		case knows == known && known == c.Size:
			return fmt.Errorf("%w: the witness has cosigned another root over %d records", ErrChanged, known)
		case knows == known:
			return fmt.Errorf("the witness refuses to go on from %d records, the number of records it says it knows", known)
		}
		known = knows
	}
	return errors.New("the witness says each time that it knows another number of records; is the key of this log in use elsewhere?")
}

// submit is one call of add-checkpoint. It returns the signature lines, or how
// many records the witness knows instead.
func (w *Witness) submit(ctx context.Context, msg []byte, c Checkpoint, known int64) (sigs []byte, knows int64, err error) {
	proof, err := w.proof(c, known)
	if err != nil {
		return nil, 0, err
	}
	var body strings.Builder
	fmt.Fprintf(&body, "old %d\n", known)
	for _, h := range proof {
		body.WriteString(h.String() + "\n")
	}
	body.WriteString("\n" + string(msg))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(w.cfg.URL, "/")+"/add-checkpoint", strings.NewReader(body.String()))
	if err != nil {
		return nil, 0, fmt.Errorf("asking the witness: %w", err)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return nil, 0, fmt.Errorf("asking the witness: %w", err)
	}
	said, err := io.ReadAll(io.LimitReader(resp.Body, maxCosigners))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, 0, fmt.Errorf("reading the witness's answer: %w", err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return said, 0, nil
	case http.StatusConflict:
		knows, err := strconv.ParseInt(strings.TrimSuffix(string(said), "\n"), 10, 64)
		switch {
		case err == nil && knows >= 0:
			return nil, knows, nil
		case known == c.Size: // no number is needed to say that the root is another
			return nil, known, nil
		}
		return nil, 0, fmt.Errorf("the witness answered %s without the number of records it knows: %.100q", resp.Status, said)
	case http.StatusUnprocessableEntity:
		return nil, 0, fmt.Errorf("%w: the witness finds that the log does not go on from the first %d records it has cosigned", ErrChanged, known)
	case http.StatusNotFound:
		return nil, 0, fmt.Errorf("the witness does not know this log; have it added with the first line of %s as its origin and the key in %s: %.100q",
			filepath.Join(w.dir, FileCheckpoint), filepath.Join(w.dir, FileVerifier), said)
	case http.StatusForbidden:
		return nil, 0, fmt.Errorf("the witness knows this log with another key than that in %s: %.100q", filepath.Join(w.dir, FileVerifier), said)
	}
	return nil, 0, fmt.Errorf("the witness answered %s: %.100q", resp.Status, said)
}

// proof shows that the tree of a checkpoint goes on from its first known records.
func (w *Witness) proof(c Checkpoint, known int64) (tlog.TreeProof, error) {
	if known == 0 || known == c.Size {
		return nil, nil
	}
	reader := treeReader(w.dir, c)
	if reader == nil {
		return nil, errMovedOn
	}
	proof, err := tlog.ProveTree(c.Size, known, reader)
	if err != nil {
		return nil, fmt.Errorf("%w: proving the log to the witness: %w", errMovedOn, err)
	}
	return proof, nil
}

// take keeps the checkpoint with the witness's signature, if it is one.
func (w *Witness) take(msg, sigs []byte, c Checkpoint) error {
	n, err := note.Open(append(msg[:len(msg):len(msg)], sigs...), note.VerifierList(w.log, w.key))
	if err != nil {
		return fmt.Errorf("reading the witness's answer: %w", err)
	}
	whole, err := note.Sign(&note.Note{Text: n.Text, Sigs: n.Sigs}) // without what others signed
	if err != nil {
		return fmt.Errorf("reading the witness's answer: %w", err)
	}
	got, err := OpenCosigned(whole, w.log, w.key)
	if err != nil {
		return err
	}
	if got.Size != c.Size || got.Root != c.Root {
		return errors.New("the witness signed another checkpoint than it was shown")
	}
	if err := writeWhole(filepath.Join(w.dir, FileCosigned), whole, 0o644); err != nil {
		return fmt.Errorf("writing the cosigned checkpoint: %w", err)
	}
	w.asked = w.cfg.Now()
	w.mu.Lock()
	w.last = got
	w.mu.Unlock()
	return nil
}
