package nethelper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/agent/dns"
	"github.com/portvakt/portvakt/agent/helpersock"
	"github.com/portvakt/portvakt/agent/peeruser"
)

// firstMessage is how long a caller may take to open its interface; the next
// one waits meanwhile.
const firstMessage = 5 * time.Second

// parting is how long the helper may take to notice that an agent ended. Whoever
// comes meanwhile is its successor and not a second one.
const parting = 500 * time.Millisecond

// ending is how long a former helper may take to end once it undid everything.
const ending = 2 * time.Second

// HelperConfig says for whom the helper works and what it may do.
type HelperConfig struct {
	// Socket is the Unix socket's path. Its directory must exist, belong to root
	// and not be writable by others.
	Socket string
	// AllowUID is the agent's user; it and root are served.
	AllowUID int
	// Pools are what routes must lie in; empty means [DefaultPools].
	Pools []netip.Prefix
	// Domains bound the names that DNS is pointed at the gateway for: these and
	// what is below them; empty means any that can be an app's.
	Domains []string
	// Ready is called once the helper listens. It may be nil.
	Ready func()
	// Log may be nil.
	Log *slog.Logger
}

// Run serves agents, one at a time, until ctx is done; then it undoes what the
// last one had set, removes its socket and returns nil. A second agent is told
// who has the helper. It needs root. What a
// killed predecessor left in this network namespace is undone first.
func Run(ctx context.Context, cfg HelperConfig) (err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Pools) == 0 {
		cfg.Pools = DefaultPools()
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("running the network helper: %w", err)
		}
	}()
	if err := checkPools(cfg.Pools); err != nil {
		return err
	}
	for _, d := range cfg.Domains {
		if err := checkForm(d); err != nil {
			return fmt.Errorf("a domain that bounds names: %w", err)
		}
	}
	if os.Geteuid() != 0 {
		return errors.New("it must run as root to make interfaces and routes")
	}
	release, err := alone(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := undoKernel(); err != nil {
		return fmt.Errorf("undoing what a former helper left: %w", err)
	}
	names, end := keepDNS(ctx, cfg.Log)
	defer end()
	l, err := helpersock.Listen("unixpacket", cfg.Socket, cfg.AllowUID)
	if err != nil {
		return err
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	if cfg.Ready != nil {
		cfg.Ready()
	}
	return accept(ctx, l, func(c *net.UnixConn) *session {
		ended, over := context.WithCancel(ctx)
		return &session{cfg: cfg, conn: c, dns: names, opened: make(chan struct{}), ended: ended, over: over, done: make(chan struct{})}
	})
}

// accept serves until ctx is done or the listener fails.
func accept(ctx context.Context, l *net.UnixListener, newSession func(*net.UnixConn) *session) error {
	var last *session
	defer func() {
		if last != nil {
			last.conn.Close()
			<-last.done
		}
	}()
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil { // out of descriptors
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		s := newSession(c)
		if last != nil && !last.makesWay() {
			s.refuse(last)
			continue
		}
		last = s
		go s.serve(ctx)
	}
}

// keepDNS starts the one manager of the laptop's DNS: what an agent's end could
// not undo is undone later. end tries once more.
func keepDNS(ctx context.Context, log *slog.Logger) (m *dns.Manager, end func()) {
	m = dns.New(dns.Config{Log: log})
	if err := m.Recover(ctx); err != nil {
		log.Warn("the network helper could not undo yet what a former one left; it goes on trying", "err", err)
	}
	running, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := m.Run(running); err != nil {
			log.Error("the network helper does not follow the laptop's DNS", "err", err)
		}
	}()
	return m, func() {
		if err := m.Undo(context.Background()); err != nil {
			log.Error("the network helper leaves something behind in this laptop's DNS; its next start undoes it", "err", err)
		}
		cancel()
		<-done
	}
}

// alone takes this network namespace, which routes belong to, for one helper. The
// kernel lets go of it with the process. No other account can hold the file, as
// it could an abstract socket's name.
// One that is just ending, as a killed agent's own, is waited for.
func alone(ctx context.Context) (release func(), err error) {
	var ns unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &ns); err != nil {
		return nil, fmt.Errorf("naming this network namespace: %w", err)
	}
	dir := filepath.Dir(DefaultSocket)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := helpersock.CheckDir(dir); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, fmt.Sprintf("net-helper.%d.lock", ns.Ino))
	for end := time.Now().Add(ending); ; {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				if time.Now().Before(end) && ctx.Err() == nil {
					time.Sleep(20 * time.Millisecond)
					continue
				}
				err = errors.New("another network helper runs already")
			}
			return nil, err
		}
		mine, err1 := f.Stat()
		there, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, there) {
			return func() {
				os.Remove(path)
				f.Close()
			}, nil
		}
		f.Close() // the former one's, removed as it ended
	}
}

// session is one agent's connection. Everything but the channels belongs to the
// goroutine of serve.
type session struct {
	cfg    HelperConfig
	conn   *net.UnixConn
	opened chan struct{}   // closed once there is an interface
	ended  context.Context // done when the agent ended; its things may still be there
	over   func()          // ends ended
	done   chan struct{}   // closed when everything is undone
	agent  uint32
	dns    *dns.Manager // the helper's
	routes *routes      // nil until open
	guard  *guard       // nil until open
	quiet  func()       // ends what keeps the guard in force
}

// makesWay waits until the session is over, or returns false if its agent stays.
func (s *session) makesWay() bool {
	select {
	case <-s.done:
	case <-s.ended.Done():
	case <-s.opened:
		t := time.NewTimer(parting)
		defer t.Stop()
		select {
		case <-s.ended.Done():
		case <-t.C:
			return false
		}
	}
	<-s.done
	return true
}

// refuse tells an agent who has the helper.
func (s *session) refuse(holder *session) {
	defer s.over()
	defer s.conn.Close()
	if !s.admitted() {
		return
	}
	s.conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := s.conn.Read(make([]byte, maxMessage)); err == nil { // it asks before it listens
		s.answer("", fmt.Errorf("it serves another agent: %s; one agent at a time can use it, so end that one first", holder.who()), -1)
	}
}

// who names the caller as the kernel knows it.
func (s *session) who() string {
	var cred *unix.Ucred
	raw, err := s.conn.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	}
	if err != nil || cred == nil {
		return "one that ends just now"
	}
	return fmt.Sprintf("process %d of user %d", cred.Pid, cred.Uid)
}

// admitted says whether the caller is one to serve.
func (s *session) admitted() bool {
	uid, err := peeruser.Unix(s.conn)
	if err != nil || uid != 0 && int(uid) != s.cfg.AllowUID {
		s.cfg.Log.Warn("the network helper refused a caller", "remote", fmt.Sprintf("uid %d", uid), "err", err)
		return false
	}
	s.agent = uid
	return true
}

// serve answers one agent and undoes everything in the end.
func (s *session) serve(ctx context.Context) {
	defer close(s.done)
	defer s.over()
	defer s.conn.Close()
	defer context.AfterFunc(ctx, func() { s.conn.Close() })()
	if !s.admitted() {
		return
	}
	defer s.undo()
	s.conn.SetReadDeadline(time.Now().Add(firstMessage))
	msg := make([]byte, maxMessage+1)
	for {
		n, _, flags, _, err := s.conn.ReadMsgUnix(msg, nil)
		if err != nil {
			return // the agent ended, in whatever way
		}
		if flags&unix.MSG_TRUNC != 0 || n > maxMessage {
			return
		}
		req, err := decode(msg[:n])
		if err != nil {
			s.answer("", err, -1)
			return
		}
		if _, last := req.(closeRequest); last {
			s.undo()
			s.answer("", nil, -1)
			return
		}
		text, tun, err := s.handle(req)
		if err != nil {
			s.cfg.Log.Warn("the network helper refused a request", "err", err)
		}
		ok := s.answer(text, err, tun)
		if tun >= 0 {
			unix.Close(tun) // the agent's copy keeps the interface
		}
		if !ok {
			return
		}
		if s.routes != nil {
			s.conn.SetReadDeadline(time.Time{})
		}
	}
}

func (s *session) answer(text string, err error, tun int) bool {
	var oob []byte
	if tun >= 0 {
		oob = unix.UnixRights(tun)
	}
	s.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _, werr := s.conn.WriteMsgUnix(encodeAnswer(text, err), oob, nil)
	return werr == nil
}

var errOrder = errors.New("open comes first, and once")

func (s *session) handle(req any) (text string, tun int, err error) {
	switch r := req.(type) {
	case openRequest:
		if s.routes != nil {
			return "", -1, errOrder
		}
		tun, err = s.open(r)
		return r.name, tun, err
	case setRequest:
		if s.routes == nil {
			return "", -1, errOrder
		}
		return "", -1, s.set(r)
	case dnsRequest:
		if s.routes == nil {
			return "", -1, errOrder
		}
		text, err = s.setDNS(r)
		return text, -1, err
	}
	return "", -1, errMessage
}

func (s *session) open(r openRequest) (tun int, err error) {
	if err := CheckName(r.name); err != nil {
		return -1, err
	}
	if r.mtu < minMTU || r.mtu > maxMTU {
		return -1, fmt.Errorf("an MTU of %d is not between %d and %d", r.mtu, minMTU, maxMTU)
	}
	if len(r.addrs) == 0 {
		return -1, errors.New("the interface has no address")
	}
	taken, err := onLink()
	if err != nil {
		return -1, err
	}
	for _, a := range r.addrs {
		if err := errors.Join(checkHost(a, s.cfg.Pools), taken.check(a)); err != nil {
			return -1, err
		}
	}
	g := &guard{link: r.name, own: r.addrs, apps: map[netip.Addr]struct{}{}}
	if err := g.set(); err != nil { // before there is an address to speak to
		return -1, errors.Join(err, undoKernel())
	}
	tun, index, own, err := makeTUN(r.name, r.mtu, r.addrs)
	if err != nil {
		return -1, errors.Join(err, undoKernel())
	}
	if s.routes, err = newRoutes(index, s.agent, own); err != nil {
		unix.Close(tun)
		return -1, errors.Join(err, undoKernel())
	}
	s.guard = g
	s.dns.Use(index)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := g.keep(ctx, s.cfg.Log); ctx.Err() == nil {
			s.cfg.Log.Error("the network helper does not follow the laptop's packet filter", "err", err)
		}
	}()
	s.quiet = func() {
		cancel()
		<-done
	}
	close(s.opened)
	s.cfg.Log.Info("the network helper opened "+r.name, "addresses", r.addrs)
	return tun, nil
}

func (s *session) set(r setRequest) error {
	if r.user == 0 && s.agent != 0 {
		return errors.New("root gets no way into the tunnel from an agent that is not root")
	}
	taken, err := onLink()
	if err != nil {
		return err
	}
	for _, a := range r.routes {
		if err := errors.Join(checkHost(a, s.cfg.Pools), taken.check(a)); err != nil {
			return err
		}
	}
	if err := s.guard.routed(r.routes); err != nil {
		return err
	}
	return s.routes.set(r.user, r.routes)
}

// setDNS points names at servers that are routed into the tunnel; no servers
// means none. The names it may not set are left out: one that is wrong must not
// take the others with it. They are told on the second line of the answer.
func (s *session) setDNS(r dnsRequest) (answer string, err error) {
	var servers []netip.Addr
	for _, a := range r.servers {
		if s.routes.from(a) == nil {
			continue // a laptop without that family
		}
		if _, ok := s.routes.now[a]; !ok {
			return "", fmt.Errorf("the DNS server %v is not in the tunnel", a)
		}
		servers = append(servers, a)
	}
	domains, left := sift(r.domains, func(d string) error { return errors.Join(checkDomain(d), checkWithin(d, s.cfg.Domains)) })
	left = strings.ReplaceAll(left, "\n", "; ")
	if left != "" {
		s.cfg.Log.Warn("the network helper leaves names out: " + left)
	}
	if len(servers) == 0 || len(domains) == 0 {
		return "\n" + left, errors.Join(s.dns.Undo(context.Background()), s.routes.setDNS(nil))
	}
	if err := s.routes.setDNS(servers); err != nil {
		return "", err
	}
	manager, err := s.dns.Set(context.Background(), dns.Setting{Servers: servers, Domains: domains})
	return manager + "\n" + left, err
}

// undo may be called more than once.
func (s *session) undo() {
	s.over()
	if s.routes == nil {
		return
	}
	s.routes = nil
	s.quiet()
	if err := errors.Join(s.dns.Undo(context.Background()), undoKernel()); err != nil {
		s.cfg.Log.Error("the network helper could not undo everything yet; DNS it goes on trying", "err", err)
		return
	}
	s.cfg.Log.Info("the network helper undid everything")
}
