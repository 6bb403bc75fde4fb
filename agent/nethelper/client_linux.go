package nethelper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/agent/peeruser"
)

const (
	dialTimeout = 2 * time.Second
	// exchangeTimeout bounds one request. A helper that has a former agent's
	// things to undo first answers late.
	exchangeTimeout = 10 * time.Second
)

// Network is an open interface and the connection to the helper that keeps
// it. Its methods may be called from any goroutine.
type Network struct {
	// Name of the interface.
	Name string

	conn    *net.UnixConn
	answers chan []byte   // from the reader
	gone    chan struct{} // closed by the reader, which is over then

	mu  sync.Mutex // one request at a time
	tun int        // guarded by mu; -1 after Close
}

// Config of an interface.
type Config struct {
	// Name of the interface, portvakt0 to portvakt999.
	Name string
	// MTU in bytes.
	MTU int
	// Addresses are the device's own.
	Addresses []netip.Addr
}

// Open asks the helper at socket for an interface. The helper must run as
// root: any account can listen on a socket.
func Open(ctx context.Context, socket string, cfg Config) (*Network, error) {
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, "unixpacket", socket)
	if err != nil {
		return nil, fmt.Errorf("asking the network helper: %w; is it running? (sudo portvakt-agent net-helper --allow-uid %d)", err, os.Geteuid())
	}
	n := &Network{tun: -1, conn: c.(*net.UnixConn), answers: make(chan []byte), gone: make(chan struct{})}
	if n.Name, err = n.open(ctx, cfg); err != nil {
		n.conn.Close()
		return nil, fmt.Errorf("asking the network helper: %w", err)
	}
	n.conn.SetDeadline(time.Time{})
	go n.read() // until Close, or until the helper is gone
	return n, nil
}

func (n *Network) open(ctx context.Context, cfg Config) (string, error) {
	defer context.AfterFunc(ctx, func() { n.conn.SetDeadline(time.Unix(1, 0)) })()
	uid, err := peeruser.Unix(n.conn)
	if err != nil {
		return "", err
	}
	if uid != 0 {
		return "", fmt.Errorf("user %d listens in its place", uid)
	}
	n.conn.SetDeadline(time.Now().Add(exchangeTimeout))
	if _, err := n.conn.Write(encode(openRequest{cfg.Name, cfg.MTU, cfg.Addresses})); err != nil {
		return "", err
	}
	answer, oob := make([]byte, 2+maxText), make([]byte, unix.CmsgSpace(4))
	m, on, flags, _, err := n.conn.ReadMsgUnix(answer, oob)
	if err != nil {
		return "", err
	}
	fds, err := rights(oob[:on])
	if err != nil {
		return "", err
	}
	name, err := decodeAnswer(answer[:m])
	if err == nil && (len(fds) != 1 || flags&unix.MSG_CTRUNC != 0) {
		err = errors.New("its answer carries no interface")
	}
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return "", err
	}
	n.tun = fds[0]
	return name, nil
}

func rights(oob []byte) (fds []int, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			return nil, err
		}
		for _, fd := range got {
			unix.CloseOnExec(fd)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// Dup returns a descriptor of the interface of its own for one tunnel to use
// and close. The interface itself lives until Close.
func (n *Network) Dup() (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.tun < 0 {
		return -1, net.ErrClosed
	}
	fd, err := unix.FcntlInt(uintptr(n.tun), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("sharing the interface: %w", err)
	}
	return fd, nil
}

// Set makes routes exactly those into the tunnel, for user and the agent; the
// other accounts of the laptop are refused there.
func (n *Network) Set(user uint32, routes []netip.Addr) error {
	if len(routes) > maxRoutes {
		return fmt.Errorf("setting routes: %d of them, at most %d are possible", len(routes), maxRoutes)
	}
	if _, err := n.ask(setRequest{user, routes}); err != nil {
		return fmt.Errorf("setting routes: %w", err)
	}
	return nil
}

// DNS makes servers answer for domains and what is below them, and returns the
// manager that does it. Names that cannot be set are left out; left says why, for
// people, and is empty when there are none. No servers undoes it.
func (n *Network) DNS(servers []netip.Addr, domains []string) (manager, left string, err error) {
	if len(servers) > maxServers {
		return "", "", fmt.Errorf("setting DNS: %d servers, at most %d are possible", len(servers), maxServers)
	}
	good, left := sift(domains, checkDomain)
	req := dnsRequest{servers, nil}
	room := maxMessage - len(encode(req))
	fits, more := sift(good, func(d string) error {
		if room -= 1 + len(d); room < 0 || len(req.domains) >= maxDomains {
			return fmt.Errorf("%q is one name too many", d)
		}
		req.domains = append(req.domains, d)
		return nil
	})
	req.domains = fits
	answer, err := n.ask(req)
	if err != nil {
		return "", "", fmt.Errorf("setting DNS: %w", err)
	}
	manager, refused, _ := strings.Cut(answer, "\n")
	return manager, joined(left, more, refused), nil
}

// Gone is closed when the helper does not answer any more: what it set is
// undone, or will be when it starts again.
func (n *Network) Gone() <-chan struct{} { return n.gone }

// Close gives the interface back; the helper undoes everything it set.
func (n *Network) Close() error {
	var err error
	select {
	case <-n.gone: // nobody is left to ask
	default:
		_, err = n.ask(closeRequest{})
	}
	n.conn.Close()
	<-n.gone
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.tun < 0 {
		return nil
	}
	err = errors.Join(err, unix.Close(n.tun))
	n.tun = -1
	return err
}

// read hands answers over and notices the helper's end.
func (n *Network) read() {
	defer close(n.gone)
	defer n.conn.Close()
	for {
		answer := make([]byte, 2+maxText)
		m, err := n.conn.Read(answer)
		if err != nil {
			return
		}
		timer := time.NewTimer(exchangeTimeout)
		select {
		case n.answers <- answer[:m]:
			timer.Stop()
		case <-timer.C:
			return // to a question that nobody asked
		}
	}
}

func (n *Network) ask(req any) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	timer := time.NewTimer(exchangeTimeout)
	defer timer.Stop()
	_, err := n.conn.Write(encode(req))
	if err == nil {
		select {
		case answer := <-n.answers:
			return decodeAnswer(answer)
		case <-timer.C:
			err = os.ErrDeadlineExceeded
		case <-n.gone:
			err = net.ErrClosed
		}
	}
	// An answer that came later would be taken for that to something else.
	n.conn.Close()
	return "", fmt.Errorf("the network helper does not answer: %w", err)
}
