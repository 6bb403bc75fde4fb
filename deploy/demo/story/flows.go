package story

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"

	"github.com/portvakt/portvakt/deploy/demo/app"
	"github.com/portvakt/portvakt/deploy/demo/stage"
)

// flow is something a worker keeps open. It beats while it works.
type flow struct {
	name string
	// silent flows are not told that they were cut (UDP): they only stop.
	silent bool
	beats  atomic.Int64
	last   atomic.Int64 // when it last beat, Unix nanoseconds

	ended chan struct{} // closed when it ended
	at    time.Time     // when; set before ended is closed
	err   error         // why; set before ended is closed

	close func()
	work  sync.WaitGroup
}

// silence is how long a silent flow must be quiet to count as cut, many times
// the pace of its beats.
const silence = 250 * time.Millisecond

func (f *flow) beat() {
	f.last.Store(time.Now().UnixNano())
	f.beats.Add(1)
}

// run reads beats in a goroutine that ends with the flow.
func (f *flow) run(read func() error) {
	f.ended = make(chan struct{})
	f.work.Go(func() {
		err := read()
		f.at, f.err = time.Now(), err
		close(f.ended)
	})
}

// stop closes the flow and waits for its goroutines.
func (f *flow) stop() {
	f.close()
	f.work.Wait()
}

func (f *flow) alive() error {
	select {
	case <-f.ended:
		return notSo(f.name+" open", "it ended: %v", f.err)
	default:
		return nil
	}
}

// beating waits until the flow has beaten n more times.
func (f *flow) beating(ctx context.Context, n int64) error {
	goal := f.beats.Load() + n
	for f.beats.Load() < goal {
		if err := f.alive(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return notSo(fmt.Sprintf("%d beats on %s", n, f.name), "%d", n-goal+f.beats.Load())
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// cut waits until the flow has been cut and returns when that was.
func (f *flow) cut(ctx context.Context) (time.Time, error) {
	for {
		last := time.Unix(0, f.last.Load())
		if f.silent && time.Since(last) > silence {
			return last, nil
		}
		wait := f.ended
		if f.silent {
			wait = nil // a "port unreachable" is not the end of the exchange
		}
		select {
		case <-wait:
			return f.at, nil
		case <-ctx.Done():
			return time.Time{}, notSo(f.name+" cut", "it is still open")
		case <-time.After(time.Millisecond):
		}
	}
}

// webSocket opens the CRM's call queue as its own page does.
func (h *hands) webSocket(ctx context.Context) (*flow, error) {
	origin := "https://" + stage.CRMHost
	c, resp, err := websocket.Dial(ctx, origin+"/ws", &websocket.DialOptions{HTTPClient: h.http, HTTPHeader: http.Header{"Origin": {origin}}})
	if err != nil {
		if resp != nil {
			return nil, fmt.Errorf("opening the call queue: %s: %w", resp.Status, err)
		}
		return nil, fmt.Errorf("opening the call queue: %w", err)
	}
	f := &flow{name: "WebSocket", close: func() { c.CloseNow() }}
	f.run(func() error {
		for {
			var t app.Tick
			if err := wsjson.Read(context.Background(), c, &t); err != nil { // ends with close
				return err
			}
			f.beat()
		}
	})
	return f, nil
}

// tcp opens the desk through its loopback port and says a line again and again.
func (h *hands) tcp(ctx context.Context) (*flow, error) {
	addr, err := h.port(ctx, "desk")
	if err != nil {
		return nil, err
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("opening the desk: %w", err)
	}
	lines := bufio.NewScanner(c)
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if !lines.Scan() || lines.Text() != app.Greeting {
		c.Close()
		return nil, notSo("the desk's greeting", "%q, %v", lines.Text(), lines.Err())
	}
	_ = c.SetReadDeadline(time.Time{})
	f := &flow{name: "TCP", close: func() { c.Close() }}
	f.run(func() error {
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(c, "line %d\n", i); err != nil {
				return err
			}
			if !lines.Scan() {
				if lines.Err() == nil {
					return errors.New("the connection was closed")
				}
				return lines.Err()
			}
			if want := fmt.Sprintf("ECHO line %d", i); lines.Text() != want {
				return notSo(want, "%q", lines.Text())
			}
			f.beat()
			time.Sleep(5 * time.Millisecond)
		}
	})
	return f, nil
}

// udp opens a call to the voice echo through its loopback port: a frame every
// few milliseconds, each of which should come back.
func (h *hands) udp(ctx context.Context) (*flow, error) {
	addr, err := h.port(ctx, "voice")
	if err != nil {
		return nil, err
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", addr)
	if err != nil {
		return nil, fmt.Errorf("opening the voice call: %w", err)
	}
	done := make(chan struct{})
	var once sync.Once
	f := &flow{name: "UDP", silent: true, close: func() { once.Do(func() { close(done); c.Close() }) }}
	f.work.Go(func() {
		pace := time.NewTicker(5 * time.Millisecond)
		defer pace.Stop()
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			case <-pace.C:
				_, _ = fmt.Fprintf(c, "frame %d", i) // lost frames are part of a call
			}
		}
	})
	f.run(func() error {
		buf := make([]byte, 2048)
		for {
			n, err := c.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			if err != nil {
				time.Sleep(time.Millisecond) // a "port unreachable"
				continue
			}
			if strings.Contains(string(buf[:n]), " frame ") {
				f.beat()
			}
		}
	})
	return f, nil
}

// openAll opens one flow of each kind.
func (h *hands) openAll(ctx context.Context) ([]*flow, error) {
	var all []*flow
	for _, open := range []func(context.Context) (*flow, error){h.webSocket, h.tcp, h.udp} {
		f, err := open(ctx)
		if err == nil {
			all = append(all, f)
			err = f.beating(ctx, 1)
		}
		if err != nil {
			stopAll(all)
			return nil, err
		}
	}
	return all, nil
}

func stopAll(all []*flow) {
	for _, f := range all {
		f.stop()
	}
}

// cutAll waits until all flows are cut and says how long after start each was.
func cutAll(ctx context.Context, all []*flow, start time.Time) (string, error) {
	var said []string
	for _, f := range all {
		at, err := f.cut(ctx)
		if err != nil {
			return "", err
		}
		said = append(said, fmt.Sprintf("%s %.0f ms", f.name, milliseconds(max(0, at.Sub(start)))))
	}
	return strings.Join(said, ", "), nil
}
