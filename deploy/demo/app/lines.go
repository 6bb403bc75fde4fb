package app

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Greeting is the first line a desk says.
const Greeting = "DESK ready; say NEXT for a ticket, QUIT to leave, anything else is echoed"

// Desk serves a line protocol on l until ctx ends: a greeting, then
// "TICKET n" for NEXT, "BYE" for QUIT, and "ECHO text" for any other line.
func Desk(ctx context.Context, l net.Listener, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var tickets struct {
		sync.Mutex
		last int
	}
	next := func() int {
		tickets.Lock()
		defer tickets.Unlock()
		tickets.last++
		return tickets.last
	}
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accepting a connection: %w", err)
		}
		conns.Go(func() {
			defer context.AfterFunc(ctx, func() { c.Close() })()
			defer c.Close()
			log.Info("desk opened", "remote", c.RemoteAddr())
			err := serveDesk(c, next)
			log.Info("desk closed", "remote", c.RemoteAddr(), "err", err)
		})
	}
}

func serveDesk(c net.Conn, next func() int) error {
	if _, err := fmt.Fprintln(c, Greeting); err != nil {
		return err
	}
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		var err error
		switch line := strings.TrimSpace(lines.Text()); line {
		case "NEXT":
			_, err = fmt.Fprintf(c, "TICKET %d\n", next())
		case "QUIT":
			_, err = fmt.Fprintln(c, "BYE")
			return err
		default:
			_, err = fmt.Fprintf(c, "ECHO %s\n", line)
		}
		if err != nil {
			return err
		}
	}
	return lines.Err()
}

// callIdle is how long a caller may be silent before its count starts anew.
const callIdle = time.Minute

// Voice answers every datagram on c with "N TEXT", N counting the datagrams of
// that caller, until ctx ends.
func Voice(ctx context.Context, c net.PacketConn, log *slog.Logger) error {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	type call struct {
		n    int
		last time.Time
	}
	calls := make(map[netip.AddrPort]*call)
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("receiving a datagram: %w", err)
		}
		now := time.Now()
		key := from.(*net.UDPAddr).AddrPort()
		k := calls[key]
		if k == nil {
			for old, k := range calls {
				if now.Sub(k.last) > callIdle {
					delete(calls, old)
				}
			}
			k = &call{}
			calls[key] = k
			log.Info("call opened", "remote", from)
		}
		k.n, k.last = k.n+1, now
		if _, err := c.WriteTo(fmt.Appendf(nil, "%d %s", k.n, buf[:n]), from); err != nil {
			log.Info("answering a caller", "remote", from, "err", err)
		}
	}
}
