//go:build !linux

package nethelper

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
)

// ErrNotAvailable is what everything fails with: so far the helper is for Linux.
var ErrNotAvailable = errors.New("the agent's TUN mode is available on Linux only so far; run without --tun")

// HelperConfig says for whom the helper works and what it may do.
type HelperConfig struct {
	Socket   string
	AllowUID int
	Pools    []netip.Prefix
	Domains  []string
	Ready    func()
	Log      *slog.Logger
}

// Run fails.
func Run(context.Context, HelperConfig) error { return ErrNotAvailable }

// Config of an interface.
type Config struct {
	Name      string
	MTU       int
	Addresses []netip.Addr
}

// Network cannot be opened.
type Network struct{ Name string }

// Open fails.
func Open(context.Context, string, Config) (*Network, error) { return nil, ErrNotAvailable }

// Dup fails.
func (*Network) Dup() (int, error) { return -1, ErrNotAvailable }

// Set fails.
func (*Network) Set(uint32, []netip.Addr) error { return ErrNotAvailable }

// DNS fails.
func (*Network) DNS([]netip.Addr, []string) (manager, left string, err error) {
	return "", "", ErrNotAvailable
}

// Gone is never closed.
func (*Network) Gone() <-chan struct{} { return nil }

// Close does nothing.
func (*Network) Close() error { return nil }
