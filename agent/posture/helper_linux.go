package posture

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/portvakt/portvakt/agent/helpersock"
	"github.com/portvakt/portvakt/agent/peeruser"
	"github.com/portvakt/portvakt/internal/wire"
)

// The helper's protocol: the client sends helperRequest, the helper answers
// with one line of JSON (helperAnswer) and closes. There is nothing to ask for
// but the fixed collectors' signals.
const (
	helperRequest   = "portvakt posture 1\n"
	helperMaxAnswer = 16 << 10
	helperDial      = 500 * time.Millisecond
	helperExchange  = 1500 * time.Millisecond
	helperClients   = 4
)

type helperAnswer struct {
	Signals []wire.Signal `json:"signals"`
}

// HelperConfig says where the helper listens and for whom.
type HelperConfig struct {
	// Socket is the Unix socket's path. Its directory must exist, belong to the
	// helper's user and not be writable by others.
	Socket string
	// Root is the tree that is judged; empty means "/". With another one the
	// helper needs no privilege and does not ask the kernel for its rules.
	Root string
	// AllowUID is the agent's user; it and root are answered.
	AllowUID int
	// Log may be nil.
	Log *slog.Logger
}

// RunHelper answers the agent with the signals that take privilege, until ctx
// is cancelled; then it removes its socket and returns nil. It runs as root
// unless Root is not "/", runs no other program and reads nothing from the
// network.
func RunHelper(ctx context.Context, cfg HelperConfig) error {
	if cfg.Root == "" {
		cfg.Root = "/"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	h := &helper{cfg: cfg, slots: make(chan struct{}, helperClients), collecting: make(chan struct{}, 1)}
	if isSlash(cfg.Root) {
		if os.Geteuid() != 0 {
			return errors.New("starting the posture helper: it must run as root to read the kernel's firewall rules")
		}
		h.kernel = kernelFirewall
	}
	l, err := helpersock.Listen("unix", cfg.Socket, cfg.AllowUID)
	if err != nil {
		return fmt.Errorf("starting the posture helper: %w", err)
	}
	var work sync.WaitGroup
	defer work.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("serving the posture helper: %w", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		select {
		case h.slots <- struct{}{}:
		default:
			c.Close()
			continue
		}
		work.Go(func() {
			defer func() { <-h.slots }()
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			h.serve(c)
		})
	}
}

type helper struct {
	cfg        HelperConfig
	kernel     func() (filtering, error) // nil: the rules belong to another system
	slots      chan struct{}
	collecting chan struct{} // one collection at a time
}

func (h *helper) serve(c *net.UnixConn) {
	c.SetDeadline(time.Now().Add(collectTimeout))
	uid, err := peeruser.Unix(c)
	if err != nil || uid != 0 && int(uid) != h.cfg.AllowUID {
		h.cfg.Log.Warn("posture helper refused a caller", "remote", fmt.Sprintf("uid %d", uid), "err", err)
		return
	}
	line := make([]byte, len(helperRequest))
	for n := 0; n < len(line); {
		m, err := c.Read(line[n:])
		if err != nil {
			return
		}
		n += m
	}
	if string(line) != helperRequest {
		return
	}
	h.collecting <- struct{}{}
	signals := collectFiles(h.cfg.Root, h.kernel)
	<-h.collecting
	answer, err := json.Marshal(helperAnswer{signals})
	if err != nil {
		return
	}
	c.Write(append(answer, '\n'))
}

// askHelper asks once. The helper must be root, or for a tree other than "/"
// this process's own user: any account can listen on a socket, but only the
// helper's can have made this one.
func askHelper(ctx context.Context, socket string, root bool) ([]wire.Signal, error) {
	d := net.Dialer{Timeout: helperDial}
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("asking the posture helper: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(helperExchange))
	uid, err := peeruser.Unix(conn)
	if err != nil {
		return nil, fmt.Errorf("asking the posture helper: %w", err)
	}
	if uid != 0 && (root || int(uid) != os.Geteuid()) {
		return nil, fmt.Errorf("asking the posture helper: user %d listens in its place", uid)
	}
	if _, err := conn.Write([]byte(helperRequest)); err != nil {
		return nil, fmt.Errorf("asking the posture helper: %w", err)
	}
	data, all, err := readBounded(bufio.NewReader(conn), helperMaxAnswer)
	if err != nil || !all {
		return nil, errors.Join(errors.New("asking the posture helper: its answer is broken off or too long"), err)
	}
	signals, err := parseAnswer(data)
	if err != nil {
		return nil, fmt.Errorf("asking the posture helper: %w", err)
	}
	return signals, nil
}

// parseAnswer takes known signals with known states only.
func parseAnswer(data []byte) ([]wire.Signal, error) {
	var a helperAnswer
	if err := wire.DecodeStrict(data, &a); err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	var out []wire.Signal
	for _, s := range a.Signals {
		state := s.State == wire.SignalPass || s.State == wire.SignalFail || s.State == wire.SignalUnknown
		if !state || !supported(s.Name) || slices.ContainsFunc(out, func(o wire.Signal) bool { return o.Name == s.Name }) {
			return nil, fmt.Errorf("reading the answer: signal %q is not one", s.Name)
		}
		out = append(out, finding{s.State, s.Value}.signal(s.Name))
	}
	return out, nil
}
