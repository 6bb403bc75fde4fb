package tunnel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// kernel is the operating system's stack behind a TUN. Other programs use it
// without us; what the agent itself opens is bound to the device's address,
// which is what the laptop's routing rules know it by.
type kernel struct {
	own []netip.Addr

	mu     sync.Mutex
	closed bool                // guarded by mu
	conns  map[closer]struct{} // guarded by mu
}

// closer is one of the agent's own sockets.
type closer interface{ Reset() }

func openKernel(cfg Config) (network, tun.Device, error) {
	if cfg.Connect == nil {
		_ = unix.Close(cfg.TUN.FD)
		return nil, nil, errConnect
	}
	// Unmonitored: the MTU and the state are the business of the interface's
	// owner, and changing them takes privilege.
	dev, _, err := tun.CreateUnmonitoredTUNFromFD(cfg.TUN.FD)
	if err != nil {
		_ = unix.Close(cfg.TUN.FD)
		return nil, nil, fmt.Errorf("using the interface: %w", err)
	}
	fast, err := newBatched(dev)
	if err != nil {
		return nil, nil, errors.Join(err, dev.Close())
	}
	own := slices.Clone(cfg.Connect.Addresses)
	return &kernel{own: own, conns: make(map[closer]struct{})}, newGuard(fast, own), nil
}

// DialTCP connects to dst from the device's own address.
func (k *kernel) DialTCP(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
	d, err := k.dialer("tcp", dst)
	if err != nil {
		return nil, err
	}
	c, err := d.DialContext(ctx, "tcp", dst.String())
	if err != nil {
		return nil, err
	}
	return k.keep(c)
}

// DialUDP returns a socket connected to dst.
func (k *kernel) DialUDP(dst netip.AddrPort) (net.Conn, error) {
	d, err := k.dialer("udp", dst)
	if err != nil {
		return nil, err
	}
	c, err := d.Dial("udp", dst.String())
	if err != nil {
		return nil, err
	}
	return k.keep(c)
}

func (k *kernel) dialer(network string, dst netip.AddrPort) (*net.Dialer, error) {
	for _, a := range k.own {
		if a.Is4() != dst.Addr().Unmap().Is4() {
			continue
		}
		var local net.Addr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 0))
		if network == "udp" {
			local = net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0))
		}
		return &net.Dialer{LocalAddr: local, Control: lateport, KeepAliveConfig: keepalives}, nil
	}
	return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ENETUNREACH}
}

// lateport has the port chosen when the destination is known, so that one port
// serves many destinations.
func lateport(_, _ string, raw syscall.RawConn) error {
	var err error
	cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	})
	if cerr != nil {
		return cerr
	}
	return err
}

func (k *kernel) keep(c net.Conn) (net.Conn, error) {
	kc := &kernelConn{Conn: c, of: k}
	if !k.note(kc) {
		kc.Reset()
		return nil, net.ErrClosed
	}
	return kc, nil
}

func (k *kernel) note(c closer) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.closed {
		k.conns[c] = struct{}{}
	}
	return !k.closed
}

func (k *kernel) forget(c closer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.conns, c)
}

// ListenUDP returns a socket on one of the device's own addresses.
func (k *kernel) ListenUDP(local netip.AddrPort) (net.PacketConn, error) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(local))
	if err != nil {
		return nil, err
	}
	kc := &kernelPackets{PacketConn: c, of: k}
	if !k.note(kc) {
		kc.Reset()
		return nil, net.ErrClosed
	}
	return kc, nil
}

// kernelPackets is a socket of the agent's own that sends to many.
type kernelPackets struct {
	net.PacketConn
	of *kernel
}

// Close implements [net.PacketConn].
func (c *kernelPackets) Close() error {
	c.of.forget(c)
	return c.PacketConn.Close()
}

// Reset closes the socket.
func (c *kernelPackets) Reset() { _ = c.Close() }

// Close breaks the agent's own connections off.
func (k *kernel) Close() error {
	k.mu.Lock()
	k.closed = true
	open := slices.Collect(maps.Keys(k.conns))
	k.mu.Unlock()
	for _, c := range open {
		c.Reset()
	}
	return nil
}

// kernelConn is a connection of the agent's own.
type kernelConn struct {
	net.Conn
	of *kernel
}

// Close implements [net.Conn].
func (c *kernelConn) Close() error {
	c.of.forget(c)
	return c.Conn.Close()
}

// CloseWrite tells the other end of a TCP connection that nothing more is
// coming.
func (c *kernelConn) CloseWrite() error {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		return t.CloseWrite()
	}
	return syscall.EOPNOTSUPP
}

// SetKeepAliveConfig sets when silence of a TCP connection is asked about.
func (c *kernelConn) SetKeepAliveConfig(cfg net.KeepAliveConfig) error {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		return t.SetKeepAliveConfig(cfg)
	}
	return syscall.EOPNOTSUPP
}

// Reset breaks the connection off, so that the other end sees it.
func (c *kernelConn) Reset() {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}
