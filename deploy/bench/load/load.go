// Package load makes the small traffic of the benchmark: ping-pong, new
// connections and voice, and the servers that answer them. Everything is
// measured from the client's side; every run ends by itself.
package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"sync"
	"time"
)

// dialLimit bounds one connection's start, lastLimit one answer.
const (
	dialLimit = 5 * time.Second
	lastLimit = 10 * time.Second
)

// pingSize is the size of a request and of its answer, in bytes.
const pingSize = 64

// Delays is what a run says about a set of delays, in microseconds. Jitter is
// the mean difference between two consecutive delays of one flow, of voice only.
type Delays struct {
	Count  int     `json:"count"`
	P50    float64 `json:"p50_us"`
	P99    float64 `json:"p99_us"`
	Jitter float64 `json:"jitter_us,omitempty"`
}

func delays(all []time.Duration) Delays {
	slices.Sort(all)
	return Delays{Count: len(all), P50: micros(quantile(all, 0.50)), P99: micros(quantile(all, 0.99))}
}

// quantile is the smallest value that at least q of the sorted ones do not
// exceed.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[max(0, i)]
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// PingPong sends 64 bytes over one TCP connection, waits for them to come back,
// and begins again, at once or when every has passed since it began, for that
// long.
func PingPong(ctx context.Context, addr string, every, d time.Duration) (Delays, error) {
	c, err := (&net.Dialer{Timeout: dialLimit}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return Delays{}, fmt.Errorf("opening the ping-pong: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := c.SetDeadline(time.Now().Add(d + lastLimit)); err != nil {
		return Delays{}, err
	}
	var buf [pingSize]byte
	all := make([]time.Duration, 0, 1<<16)
	for begin := time.Now(); time.Since(begin) < d; {
		at := time.Now()
		if _, err := c.Write(buf[:]); err != nil {
			return Delays{}, fmt.Errorf("writing a ping: %w", err)
		}
		if _, err := io.ReadFull(c, buf[:]); err != nil {
			return Delays{}, fmt.Errorf("reading a pong: %w", err)
		}
		all = append(all, time.Since(at))
		time.Sleep(every - time.Since(at))
	}
	return delays(all), nil
}

// Opened is what [Connect] counted.
type Opened struct {
	PerSecond float64 `json:"per_second"`
	Failed    int     `json:"failed"`
	Delays    Delays  `json:"delays"`
}

// Connect opens connections with that many workers for that long. A connection
// counts once one byte went there and came back: a server that accepts before
// it has decided and dialled gains nothing by it. An error is returned only
// when no connection at all was opened.
func Connect(ctx context.Context, addr string, workers int, d time.Duration) (Opened, error) {
	var mu sync.Mutex
	var all []time.Duration // guarded by mu, like what follows
	var failed int
	var first error
	var wg sync.WaitGroup
	begin := time.Now()
	for range workers {
		wg.Go(func() {
			var mine []time.Duration
			for time.Since(begin) < d && ctx.Err() == nil {
				at := time.Now()
				err := exchange(ctx, addr)
				if err == nil {
					mine = append(mine, time.Since(at))
					continue
				}
				mu.Lock()
				failed++
				first = errors.Join(first, err)
				enough := failed > 1000
				mu.Unlock()
				if enough {
					break
				}
			}
			mu.Lock()
			all = append(all, mine...)
			mu.Unlock()
		})
	}
	wg.Wait()
	took := time.Since(begin)
	if len(all) == 0 {
		return Opened{}, fmt.Errorf("opening connections: %w", first)
	}
	return Opened{PerSecond: float64(len(all)) / took.Seconds(), Failed: failed, Delays: delays(all)}, nil
}

func exchange(ctx context.Context, addr string) error {
	c, err := (&net.Dialer{Timeout: dialLimit}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(dialLimit)); err != nil {
		return err
	}
	b := []byte{1}
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err = io.ReadFull(c, b)
	return err
}

// EchoTCP sends back what it reads on every connection until ctx ends.
func EchoTCP(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accepting: %w", err)
		}
		wg.Go(func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			// By hand: io.Copy would splice, which costs two system calls and a
			// pipe for each of these few bytes.
			var buf [4096]byte
			for {
				n, err := c.Read(buf[:])
				if err != nil {
					return
				}
				if _, err := c.Write(buf[:n]); err != nil {
					return
				}
			}
		})
	}
}
