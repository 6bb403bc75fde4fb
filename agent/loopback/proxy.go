package loopback

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"
)

func (t *target) dst() netip.AddrPort { return netip.AddrPortFrom(t.addr, t.key.port) }

// servePreface tells SOCKS from HTTP by the first byte and returns when the
// connection is over.
func (s *Server) servePreface(p *peer, web *proxyHTTP) {
	p.SetReadDeadline(time.Now().Add(headerTimeout))
	first, err := p.in.Peek(1)
	if err != nil {
		return
	}
	p.SetReadDeadline(time.Time{})
	switch {
	case first[0] == 5:
		s.serveSOCKS(p)
	case first[0] >= 'A' && first[0] <= 'Z':
		if web.feed(p) {
			<-p.closed
		}
	}
}

// proxyHTTP is net/http's server on connections that servePreface hands over.
type proxyHTTP struct {
	s       *Server
	server  *http.Server
	forward *httputil.ReverseProxy
	pool    *http.Transport
	conns   chan net.Conn
	done    chan struct{}
	once    sync.Once
}

type peerKey struct{}

// targetOf carries the target of an absolute-form request to its dial.
type targetOf struct{}

func newProxyHTTP(s *Server, ctx context.Context) *proxyHTTP {
	h := &proxyHTTP{s: s, conns: make(chan net.Conn), done: make(chan struct{})}
	h.pool = &http.Transport{
		DialContext:            h.dialForward,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
	}
	h.forward = &httputil.ReverseProxy{
		Transport: h.pool,
		Rewrite: func(r *httputil.ProxyRequest) {
			// Rewrite drops what it cannot parse of a query; deciding on
			// requests is the gateway's, so it gets the client's.
			r.Out.URL.RawQuery = r.In.URL.RawQuery
			r.Out.URL.ForceQuery = r.In.URL.ForceQuery
			r.Out.Host = r.In.URL.Host // RFC 9112 section 3.2.2
		},
		ModifyResponse: func(r *http.Response) error {
			r.Header.Del("Proxy-Connection")
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			t, _ := r.Context().Value(targetOf{}).(*target)
			h.unreachable(w, r, t, err)
		},
		ErrorLog:      slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		FlushInterval: -1,
	}
	h.server = &http.Server{
		Handler:                      h,
		ReadHeaderTimeout:            headerTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               64 << 10,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext:                  func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, c)
		},
	}
	s.work.Go(func() { h.server.Serve(h) })
	return h
}

// close ends the server and its connections. It may be called twice.
func (h *proxyHTTP) close() {
	h.once.Do(func() {
		close(h.done)
		h.server.Close()
		h.pool.CloseIdleConnections()
	})
}

// feed gives a connection to the server; false if the server has ended.
func (h *proxyHTTP) feed(p *peer) bool {
	select {
	case h.conns <- p:
		return true
	case <-h.done:
		return false
	}
}

// Accept, Close and Addr make the server's listener of it.
func (h *proxyHTTP) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close does nothing: the listener belongs to the Server.
func (h *proxyHTTP) Close() error { return nil }

// Addr is asked for by net/http only.
func (h *proxyHTTP) Addr() net.Addr { return &net.TCPAddr{} }

// ServeHTTP sorts the three kinds of requests a proxy gets.
func (h *proxyHTTP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p, ok := r.Context().Value(peerKey{}).(*peer)
	if !ok || !h.s.allowed(p.uid) {
		panic(http.ErrAbortHandler) // the connection outlived its login
	}
	switch {
	case r.Method == http.MethodConnect:
		h.connect(w, r, p)
	case r.URL.Scheme != "" || r.URL.Host != "":
		h.absolute(w, r)
	default:
		h.direct(w, r)
	}
}

// connect carries CONNECT host:port. The app is dialled before the answer, so
// that a refusal is an answer and not a broken tunnel.
func (h *proxyHTTP) connect(w http.ResponseWriter, r *http.Request, p *peer) {
	host, port, err := splitAuthority(r.RequestURI, 0)
	if err != nil {
		refuse(w, http.StatusBadRequest, "CONNECT wants HOST:PORT.")
		return
	}
	t := h.lookup(w, host, port)
	if t == nil {
		return
	}
	remote, err := h.s.dial(r.Context(), t)
	if err != nil {
		h.unreachable(w, r, t, err)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		remote.Close()
		return
	}
	// net/http leaves the connection to us from here, and p.ctx ends it.
	defer conn.Close()
	// What came right behind the request is looked at like the rest.
	if early, _ := buffered.Peek(buffered.Reader.Buffered()); len(early) > 0 {
		p.in = bufio.NewReader(io.MultiReader(bytes.NewReader(early), p.in))
	}
	p.screen = screenName(t)
	if _, err := io.WriteString(p, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		remote.Close()
		return
	}
	h.s.relay(p, t, remote)
}

// absolute forwards GET http://host/path. https needs CONNECT: this proxy does
// not look into what it carries.
func (h *proxyHTTP) absolute(w http.ResponseWriter, r *http.Request) {
	if r.URL.Scheme != "http" || r.URL.Opaque != "" || r.URL.User != nil {
		refuse(w, http.StatusBadRequest, "This proxy takes http:// URLs without a user name; https goes through CONNECT.")
		return
	}
	host, port, err := splitAuthority(r.URL.Host, 80)
	if err != nil {
		refuse(w, http.StatusBadRequest, "The URL has no usable host.")
		return
	}
	t := h.lookup(w, host, port)
	if t == nil {
		return
	}
	if t.key.protocol != "http" {
		refuse(w, http.StatusForbidden, fmt.Sprintf("%s does not speak HTTP through this proxy; it has a port of its own (portvakt-agent apps shows it).", t.key.app))
		return
	}
	h.forward.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), targetOf{}, t)))
}

// lookup finds the target or answers why there is none.
func (h *proxyHTTP) lookup(w http.ResponseWriter, host string, port uint16) *target {
	t, known := h.s.routes.Load().find(host, port)
	switch {
	case t != nil:
	case known:
		refuse(w, http.StatusForbidden, fmt.Sprintf("Portvakt does not carry port %d of this app.", port))
	default:
		refuse(w, http.StatusForbidden, "Portvakt carries only approved apps, and this host is none of yours. Other sites should not be sent to this proxy; use the configuration file /proxy.pac.")
	}
	return t
}

// dialForward dials for the transport's pool. A pooled connection is keyed by
// host and port, and dies with the app, so that it never serves another.
func (h *proxyHTTP) dialForward(ctx context.Context, _, _ string) (net.Conn, error) {
	t, ok := ctx.Value(targetOf{}).(*target)
	if !ok {
		return nil, errors.New("dialling without a target")
	}
	c, err := h.s.dial(ctx, t)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(t.ctx, func() { c.Close() })
	return &pooledConn{Conn: c, stop: stop}, nil
}

// pooledConn lets go of its app's context when it is closed.
type pooledConn struct {
	net.Conn
	stop func() bool
}

// Close closes the connection.
func (c *pooledConn) Close() error {
	c.stop()
	return c.Conn.Close()
}

func (h *proxyHTTP) unreachable(w http.ResponseWriter, r *http.Request, t *target, err error) {
	h.s.log.Info("app not reached", "app", t.key.app, "err", err)
	unreachable(w, r, t.key.app, err)
}

func timedOut(err error) bool {
	var n net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &n) && n.Timeout()
}

func refuse(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	io.WriteString(w, text+"\n")
}

// splitAuthority reads HOST[:PORT]; without a port it is byDefault, and 0 means
// that a port is needed.
func splitAuthority(s string, byDefault uint16) (host string, port uint16, err error) {
	u := url.URL{Host: s}
	host, text := u.Hostname(), u.Port()
	if text == "" && byDefault != 0 && (u.Host == host || u.Host == "["+host+"]") {
		return host, byDefault, nil
	}
	if h, p, err := net.SplitHostPort(s); err != nil || h != host || p != text {
		return "", 0, errors.New("not HOST:PORT")
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || host == "" {
		return "", 0, errors.New("not HOST:PORT")
	}
	return host, uint16(n), nil
}
