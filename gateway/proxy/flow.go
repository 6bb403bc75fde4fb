package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/portvakt/portvakt/gateway/dial"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/policy"
)

// openFlow registers, decides and records a flow and dials its app. It
// passes the turn on before the dial, so that an app that does not answer keeps
// nobody from the others. A nil Flow means that nothing may be answered.
func (p *Proxy) openFlow(ctx context.Context, b session.Begin, t *turn) (*session.Flow, net.Conn) {
	flow, err := p.cfg.Session.Begin(b)
	if err != nil {
		p.log.Debug("refusing a flow", "app", b.App.Name, "remote", b.Peer, "err", err)
		return nil, nil
	}
	d, err := flow.Authorize(ctx, nil)
	if err != nil || !d.Allow {
		flow.End(session.Result{})
		return nil, nil
	}
	t.decided()
	dialing, cancel := flowing(ctx, flow)
	defer cancel()
	dialer := dial.New(p.cfg.Timeouts.Dial, b.App.Allow, p.cfg.Forbidden)
	up, err := p.upstreams.breakers.dial(dialing, b.App.Name, dialer, b.App.UpstreamFor(b.Port))
	if err != nil {
		outcome := outcomeUnreachable
		if errors.Is(err, dial.ErrForbidden) {
			outcome = outcomeForbidden
		}
		p.log.Log(ctx, unanswered(err), dial.Failed(err), "app", b.App.Name, "flow", flow.ID(), "decision", d.ID, "err", err)
		flow.End(session.Result{Outcome: outcome})
		return nil, nil
	}
	return flow, up
}

// flowing is ctx that ends also when the flow is cut.
func flowing(ctx context.Context, flow *session.Flow) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(flow.Context(), cancel)
	return ctx, func() { stop(); cancel() }
}

// endFlow takes a flow out of the registry with what became of it.
func endFlow(flow *session.Flow, outcome string, in, out int64) {
	if _, cut := flow.Cut(); cut {
		outcome = outcomeCut
	}
	flow.End(session.Result{Outcome: outcome, BytesIn: in, BytesOut: out})
}

// serveTCP decides and dials before the handshake is answered, so that a
// refusal is a reset and not a connection that dies.
func (p *Proxy) serveTCP(ctx context.Context, in TCPInbound, app *policy.App, t *turn) {
	port := in.Local().Port()
	if app.Protocol != "tcp" || !slices.Contains(app.Ports, port) {
		in.Reset()
		return
	}
	flow, up := p.openFlow(ctx, session.Begin{Peer: in.Peer(), App: app, Action: policy.ActionFlow, Port: port}, t)
	if flow == nil {
		in.Reset()
		return
	}
	if flow.Check() != nil {
		in.Reset()
		abort(up)
		endFlow(flow, outcomeDone, 0, 0)
		return
	}
	shaking, cancel := flowing(ctx, flow)
	device, err := p.shake(shaking, in)
	cancel()
	if err != nil {
		abort(up)
		endFlow(flow, outcomeDone, 0, 0)
		return
	}
	kill := sync.OnceFunc(func() { abort(device); abort(up) })
	flow.OnCut(kill)
	defer t.closed(1)
	defer context.AfterFunc(ctx, kill)()
	toApp := patience{within: p.cfg.Timeouts.WriteTCP, conn: up, over: kill}
	toDevice := patience{within: p.cfg.Timeouts.WriteTCP, conn: device, over: kill}
	defer toApp.stop()
	defer toDevice.stop()
	var sent, received atomic.Int64
	var both sync.WaitGroup
	both.Go(func() {
		if _, err := pump(flow.Check, up, device, &toApp, &sent); err != nil {
			kill()
		}
	})
	res := outcomeDone
	if fromApp, err := pump(flow.Check, device, up, &toDevice, &received); err != nil {
		if fromApp && flow.Check() == nil && ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
			res = outcomeBroke
		}
		kill()
	}
	both.Wait()
	switch {
	case toApp.gaveUp():
		res = outcomeTimeout
	case toDevice.gaveUp():
		res = outcomeStalled
	}
	_ = device.Close()
	_ = up.Close()
	endFlow(flow, res, sent.Load(), received.Load())
}

// sipBytes is the buffer of a connection that has not shown yet that it moves
// much: most wait, and each has two.
const sipBytes = 4 << 10

var sips = sync.Pool{New: func() any { return new([sipBytes]byte) }}

// pump copies until the source ends and then ends the destination's other
// direction alone, so that a half-closed connection goes on. What fills the
// small buffer gets a large one; what fills that is a bulk transfer, which the
// kernel moves by itself where it has both ends. taker is that of dst. On an error reading says which
// side it was on.
func pump(check func() error, dst, src net.Conn, taker *patience, count *atomic.Int64) (reading bool, err error) {
	sip := sips.Get().(*[sipBytes]byte)
	defer sips.Put(sip)
	buf, whole := sip[:], []byte(nil)
	defer func() {
		if whole != nil {
			chunks.Put(whole)
		}
	}()
	bulk := newSplice(dst, src)
	for {
		n, rerr := src.Read(buf)
		if err := check(); err != nil {
			return false, err
		}
		if n > 0 {
			if err := taker.begin(); err != nil {
				return false, err
			}
			w, err := dst.Write(buf[:n])
			err = taker.done(err)
			count.Add(int64(w))
			if err != nil {
				return false, err
			}
		}
		end := errors.Is(rerr, io.EOF)
		if rerr != nil && !end {
			return true, rerr
		}
		if n == len(buf) && !end && whole == nil {
			whole = chunks.Get()
			buf = whole
			if d, ok := dst.(interface{ WriteSize() int }); ok { // what leaves without a rest
				buf = whole[:min(len(whole), d.WriteSize())]
			}
			continue
		}
		if n == len(buf) && !end && bulk != nil {
			if end, reading, err = bulk.run(check, taker, count); err != nil {
				return reading, err
			}
		}
		if end {
			if h, ok := dst.(interface{ CloseWrite() error }); ok {
				_ = h.CloseWrite()
			}
			return false, nil
		}
	}
}
