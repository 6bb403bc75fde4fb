package tunnel

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// resolveTimeout bounds the resolution of the gateway's host name.
const resolveTimeout = 5 * time.Second

// key reads a WireGuard key as wg prints it. The error does not repeat it.
func key(s string) (k [32]byte, err error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(k) {
		return k, errors.New("not 32 bytes in base64")
	}
	return [32]byte(b), nil
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// resolve finds the address of host:port, and of several the first this
// machine has a route to.
func resolve(endpoint string) (netip.AddrPort, error) {
	name, p, err := net.SplitHostPort(endpoint)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("reading endpoint: %q is not host:port", endpoint)
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil || port == 0 {
		return netip.AddrPort{}, fmt.Errorf("reading endpoint: %q has no port from 1 to 65535", endpoint)
	}
	if a, err := netip.ParseAddr(name); err == nil {
		return netip.AddrPortFrom(a.Unmap(), uint16(port)), nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("resolving endpoint: %w", err)
	}
	if len(addrs) == 0 {
		return netip.AddrPort{}, fmt.Errorf("resolving endpoint: %q has no address", name)
	}
	for _, a := range addrs {
		ap := netip.AddrPortFrom(a.Unmap(), uint16(port))
		// Connecting a UDP socket sends nothing; it fails without a route.
		if c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(ap)); err == nil {
			_ = c.Close()
			return ap, nil
		}
	}
	return netip.AddrPortFrom(addrs[0].Unmap(), uint16(port)), nil
}

func logger(log *slog.Logger) *device.Logger {
	ctx := context.Background()
	write := func(format string, args ...any) {
		if log.Enabled(ctx, slog.LevelDebug) {
			log.Debug("wireguard: " + fmt.Sprintf(format, args...))
		}
	}
	return &device.Logger{Verbosef: write, Errorf: write}
}
