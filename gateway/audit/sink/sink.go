// Package sink sends the decision log to other systems as it is written: to a
// file, to syslog over TLS, to an OTLP collector, to an HTTPS webhook.
//
// The log itself is the spool: a sink is a reader with a kept position. While
// its receiver is away nothing is queued anywhere else, and nothing that is
// granted waits. Records go out in order, each with (node, seq), at least once;
// into a file exactly once.
package sink

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/export"
)

const (
	lookEvery  = 200 * time.Millisecond
	maxRecords = 500
	maxBytes   = 1 << 20
	maxBackoff = time.Minute
)

// Config of a Sink. Name, Type and Format have been checked by whoever read it.
type Config struct {
	Name   string // names the file with its position; [a-z0-9-]
	Type   string // one of Types
	Format string // a name of export.Formats; otlp takes none
	// To is a path for file, host:port for syslog, an https URL for the others.
	To string
	// CAFile are the roots to trust instead of the system's; TokenFile holds a
	// bearer token for otlp and webhook. Both are optional.
	CAFile, TokenFile string

	Decisions export.Log // the decision log
	Dir       string     // keeps the position
	Node      string
	// Record appends to the decision log that a sink misses records.
	Record func(*audit.Record) error
	// Retry is the first pause after a failure; zero means 1 s. It doubles up to
	// a minute.
	Retry time.Duration
	Log   *slog.Logger
}

// Types of Sinks.
var Types = []string{"file", "syslog", "otlp", "webhook"}

// record is one record in a batch: in the sink's form, and as itself.
type record struct {
	text []byte
	*audit.Record
}

// receiver is the other end. send returns nil only when the batch arrived, as
// far as the protocol can tell; what it was given may then be forgotten. done
// is the number of the batch's last record.
type receiver interface {
	send(ctx context.Context, batch []record) error
	close() error
	// mark notes in a position what the next process has to know besides.
	mark(at *position)
}

// position is how far a sink has come.
type position struct {
	Seq         uint64 `json:"seq"` // of the last record that arrived
	audit.Place        // behind it
	Size        int64  `json:"size"` // of the file a file sink writes
	// Record is where that record is, Hash the SHA-256 of its line in hex: another
	// one may get its number, in a log that was cut or restored from a backup and
	// has grown since. Both are empty in positions of versions that kept none.
	Record audit.Place `json:"record"`
	Hash   string      `json:"hash,omitempty"`
	// Unread is the first record that goes out again when the next process begins:
	// see [syslog.mark].
	Unread uint64 `json:"unread,omitempty"`
}

// Sink is one of them. Run it from one goroutine; Healthy and Sent may be called
// from any.
type Sink struct {
	cfg Config
	to  receiver
	at  position
	// same says that the log still holds the record that arrived last.
	same bool

	// mu guards what others ask for.
	mu     sync.Mutex
	down   error
	sent   uint64
	missed uint64
}

// New reads the position. It connects to nothing.
func New(cfg Config) (*Sink, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Retry == 0 {
		cfg.Retry = time.Second
	}
	s := &Sink{cfg: cfg}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("preparing sink %s: %w", cfg.Name, err)
	}
	data, err := os.ReadFile(s.positionFile())
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err := s.begin(); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, fmt.Errorf("reading the position of sink %s: %w", cfg.Name, err)
	default:
		d := json.NewDecoder(bytes.NewReader(data))
		d.DisallowUnknownFields()
		if err := d.Decode(&s.at); err != nil || s.at.Offset < 0 || s.at.Size < 0 {
			return nil, fmt.Errorf("%s does not hold a position; remove it to send the whole log again", s.positionFile())
		}
	}
	if s.to, err = s.receiver(); err != nil {
		return nil, fmt.Errorf("preparing sink %s: %w", cfg.Name, err)
	}
	s.sent = s.at.Seq
	return s, nil
}

// begin is a sink's first start. A file that is there already keeps what it
// holds: the position says so before anything is written behind it.
func (s *Sink) begin() error {
	first, err := audit.First(s.cfg.Decisions.File)
	if err != nil {
		return fmt.Errorf("preparing sink %s: %w", s.cfg.Name, err)
	}
	s.at.Seq = first - 1 // what retention removed is not to be had
	if s.cfg.Type != "file" {
		return nil
	}
	st, err := os.Stat(s.cfg.To)
	switch {
	case err == nil:
		s.at.Size = st.Size()
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("preparing sink %s: %w", s.cfg.Name, err)
	}
	return s.keepSize(s.at.Size)
}

// keepSize keeps the position with another size, also over a crash of the
// machine.
func (s *Sink) keepSize(size int64) error {
	s.at.Size = size
	if err := s.keep(); err != nil {
		return err
	}
	if err := syncDir(s.cfg.Dir); err != nil {
		return fmt.Errorf("keeping the position of sink %s: %w", s.cfg.Name, err)
	}
	return nil
}

func (s *Sink) receiver() (receiver, error) {
	switch s.cfg.Type {
	case "file":
		return &file{path: s.cfg.To, size: s.at.Size, keep: s.keepSize}, nil
	case "syslog":
		return newSyslog(s.cfg)
	case "otlp", "webhook":
		return newPoster(s.cfg)
	}
	return nil, fmt.Errorf("there is no sink of type %q", s.cfg.Type)
}

func (s *Sink) positionFile() string { return filepath.Join(s.cfg.Dir, s.cfg.Name+".json") }

// Name is the configured one.
func (s *Sink) Name() string { return s.cfg.Name }

// Sent is the number of the last record that arrived.
func (s *Sink) Sent() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

// Missed counts the records, since the start, that were removed before they
// arrived.
func (s *Sink) Missed() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.missed
}

// Healthy returns nil, or why records are not arriving.
func (s *Sink) Healthy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down
}

// Run sends what is there and what comes until ctx is done. A receiver that
// fails is tried again, for ever and ever more rarely, from the first record
// that is not known to have arrived.
func (s *Sink) Run(ctx context.Context) error {
	defer func() {
		err := s.to.close()
		before := s.at
		if s.to.mark(&s.at); s.same && s.at != before {
			err = errors.Join(err, s.keep())
		}
		if err != nil { // an end is no recovery
			s.tell(err)
		}
	}()
	backoff := s.cfg.Retry
	for {
		n, err := s.step(ctx)
		if ctx.Err() != nil {
			return nil
		}
		s.tell(err)
		wait := lookEvery
		switch {
		case err != nil:
			wait = backoff/2 + rand.N(backoff)
			backoff = min(2*backoff, maxBackoff)
		case n > 0:
			wait, backoff = 0, s.cfg.Retry
		}
		if wait == 0 {
			continue
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

func (s *Sink) tell(err error) {
	s.mu.Lock()
	was := s.down
	s.down, s.sent = err, s.at.Seq
	s.mu.Unlock()
	switch {
	case err != nil && was == nil:
		s.cfg.Log.Warn("a sink of the decision log does not take records; they wait in the log", "sink", s.cfg.Name, "err", err)
	case err == nil && was != nil:
		s.cfg.Log.Info("a sink of the decision log takes records again", "sink", s.cfg.Name)
	}
}

// step sends one batch and keeps the new position.
func (s *Sink) step(ctx context.Context) (n int, err error) {
	if !s.same {
		if err := s.compare(); err != nil {
			return 0, err
		}
		if err := s.again(); err != nil {
			return 0, err
		}
		s.same = true
	}
	batch, next, err := s.read()
	if errors.Is(err, audit.ErrRemoved) {
		return 0, s.skip()
	}
	if err != nil || len(batch) == 0 {
		return 0, err
	}
	if err := s.to.send(ctx, batch); err != nil {
		return 0, fmt.Errorf("sending records %d to %d: %w", batch[0].Seq, batch[len(batch)-1].Seq, err)
	}
	s.at = next
	s.to.mark(&s.at)
	// A crash before this makes a network receiver get the batch again.
	return len(batch), s.keep()
}

// skip goes behind what was removed before it arrived. The log says so first,
// and through it every sink, this one among them.
func (s *Sink) skip() error {
	first, err := audit.First(s.cfg.Decisions.File)
	if err != nil {
		return err
	}
	from, to := s.at.Seq+1, first-1
	if to < from {
		return nil // it is there again
	}
	s.cfg.Log.Error("a sink of the decision log misses records: they were removed before they arrived", "sink", s.cfg.Name, "from", from, "to", to)
	if err := s.cfg.Record(&audit.Record{Kind: audit.KindSinkGap, Detail: map[string]string{
		"sink": s.cfg.Name, "from": strconv.FormatUint(from, 10), "to": strconv.FormatUint(to, 10),
	}}); err != nil {
		return fmt.Errorf("recording that records %d to %d did not arrive: %w", from, to, err)
	}
	s.at = position{Seq: to, Size: s.at.Size}
	s.mu.Lock()
	s.missed += to - from + 1
	s.mu.Unlock()
	return s.keep()
}

func (s *Sink) keep() error {
	data, err := json.Marshal(s.at)
	if err == nil {
		err = renameio.WriteFile(s.positionFile(), append(data, '\n'), 0o600, renameio.WithTempDir(s.cfg.Dir))
	}
	if err != nil {
		return fmt.Errorf("keeping the position of sink %s: %w", s.cfg.Name, err)
	}
	return nil
}

// compare finds out whether the record that arrived last is still the one that
// has its number. One that was removed is taken to be.
func (s *Sink) compare() error {
	if s.at.Hash == "" {
		return nil
	}
	at, hash := s.at.Record, ""
	err := audit.Lines(s.cfg.Decisions.File, s.at.Seq-1, &at, func(line []byte) (bool, error) {
		hash = hashOf(line)
		return false, nil
	})
	switch {
	case errors.Is(err, audit.ErrRemoved):
		return nil
	case err != nil:
		return s.shorter(err)
	case hash != s.at.Hash:
		return fmt.Errorf("record %d of the decision log is not the one that arrived: the log was changed, or restored from a backup; remove %s to send all there is again", s.at.Seq, s.positionFile())
	}
	return nil
}

// again goes back to what perhaps nobody read, when the process before did not see
// its connection end in order. What was removed since had arrived, for all that
// anybody knew.
func (s *Sink) again() error {
	if s.at.Unread == 0 {
		return nil
	}
	first, err := audit.First(s.cfg.Decisions.File)
	if err != nil {
		return err
	}
	if from := max(first, s.at.Unread); from <= s.at.Seq {
		s.cfg.Log.Info("a sink sends again what its receiver may not have read", "sink", s.cfg.Name, "from", from, "to", s.at.Seq)
		s.at = position{Seq: from - 1}
	}
	return nil
}

func hashOf(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

func (s *Sink) shorter(err error) error {
	if errors.Is(err, audit.ErrShorter) {
		return fmt.Errorf("%w; remove %s to send all there is again", err, s.positionFile())
	}
	return err
}

// read returns the next records behind the position, and the position behind
// them.
func (s *Sink) read() (batch []record, next position, err error) {
	next, size := s.at, 0
	err = audit.Lines(s.cfg.Decisions.File, s.at.Seq, &next.Place, func(line []byte) (bool, error) {
		if len(batch) == maxRecords || len(batch) > 0 && size+len(line) > maxBytes {
			return false, nil
		}
		size += len(line)
		r := new(audit.Record)
		if err := json.Unmarshal(line, r); err != nil || r.Seq != s.at.Seq+uint64(len(batch))+1 {
			return false, fmt.Errorf("behind record %d the decision log does not go on with record %d", s.at.Seq+uint64(len(batch)), s.at.Seq+uint64(len(batch))+1)
		}
		shown := line
		if s.cfg.Decisions.Reveal != nil {
			var err error
			if shown, err = s.cfg.Decisions.Reveal(line, r); err != nil {
				return false, fmt.Errorf("reading the decision log: %w", err)
			}
		}
		out := record{Record: r}
		if f := export.Formats[s.cfg.Format]; f != nil {
			var err error
			if out.text, err = f(nil, s.cfg.Node, shown, r); err != nil {
				return false, fmt.Errorf("writing record %d as %s: %w", r.Seq, s.cfg.Format, err)
			}
		}
		batch = append(batch, out)
		next.Seq, next.Record, next.Hash = r.Seq, next.Place, hashOf(line)
		return true, nil
	})
	if err != nil {
		return nil, next, s.shorter(err)
	}
	return batch, next, nil
}
