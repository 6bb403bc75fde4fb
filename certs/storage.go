package certs

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
)

// drainTime is how long a stopping gateway waits for certmagic's work to end.
const drainTime = 5 * time.Second

var errStopping = errors.New("the gateway is stopping")

// storage is certmagic's file storage with a way to know that certmagic is
// through: it ends its jobs when their context does, but does not say when.
// After drain nothing is written any more.
type storage struct {
	files certmagic.FileStorage

	mu       sync.Mutex
	stopping bool // guarded by mu
	locks    int  // guarded by mu; held, or about to be
	writes   int  // guarded by mu; going on
}

func (s *storage) enter(count *int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Who holds a lock may finish: a certificate that was just issued must
	// not be lost.
	if s.stopping && s.locks == 0 {
		return errStopping
	}
	*count++
	return nil
}

func (s *storage) leave(count *int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*count--
}

// drain waits until no lock is held and no write goes on, drainTime at most.
func (s *storage) drain() {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	for end := time.Now().Add(drainTime); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		idle := s.locks == 0 && s.writes == 0
		s.mu.Unlock()
		if idle {
			return
		}
	}
}

func (s *storage) Lock(ctx context.Context, name string) error {
	if err := s.enter(&s.locks); err != nil {
		return err
	}
	err := s.files.Lock(ctx, name)
	if err != nil {
		s.leave(&s.locks)
	}
	return err
}

func (s *storage) TryLock(ctx context.Context, name string) (bool, error) {
	if err := s.enter(&s.locks); err != nil {
		return false, err
	}
	ok, err := s.files.TryLock(ctx, name)
	if err != nil || !ok {
		s.leave(&s.locks)
	}
	return ok, err
}

func (s *storage) Unlock(ctx context.Context, name string) error {
	defer s.leave(&s.locks)
	return s.files.Unlock(ctx, name)
}

func (s *storage) Store(ctx context.Context, key string, value []byte) error {
	if err := s.enter(&s.writes); err != nil {
		return err
	}
	defer s.leave(&s.writes)
	return s.files.Store(ctx, key, value)
}

func (s *storage) Delete(ctx context.Context, key string) error {
	if err := s.enter(&s.writes); err != nil {
		return err
	}
	defer s.leave(&s.writes)
	return s.files.Delete(ctx, key)
}

func (s *storage) Load(ctx context.Context, key string) ([]byte, error) {
	return s.files.Load(ctx, key)
}

func (s *storage) Exists(ctx context.Context, key string) bool {
	return s.files.Exists(ctx, key)
}

func (s *storage) List(ctx context.Context, path string, recursive bool) ([]string, error) {
	return s.files.List(ctx, path, recursive)
}

func (s *storage) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	return s.files.Stat(ctx, key)
}

func (s *storage) String() string { return s.files.String() }
