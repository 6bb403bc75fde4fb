package lab

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"time"
)

// Key makes a WireGuard key pair, in the hex of its configuration protocol.
func Key() (private, public string, err error) {
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return "", "", fmt.Errorf("making a tunnel key: %w", err)
	}
	return hex.EncodeToString(k.Bytes()), hex.EncodeToString(k.PublicKey().Bytes()), nil
}

// Configure sets up a wireguard-go by its own protocol
// (https://www.wireguard.com/xplatform/), one key=value a line. It waits until
// the program listens.
func Configure(ctx context.Context, iface string, lines ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	path := filepath.Join(sockets, iface+".sock")
	for {
		err := configure(ctx, path, lines)
		if err == nil {
			return nil
		}
		if _, up := err.(refusedError); up {
			return fmt.Errorf("configuring %s: %w", iface, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("configuring %s: %w", iface, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

type refusedError string

func (e refusedError) Error() string { return "wireguard-go answers " + string(e) }

func configure(ctx context.Context, path string, lines []string) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	defer c.Close()
	if d, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(d); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(c, "set=1\n"+strings.Join(lines, "\n")+"\n\n"); err != nil {
		return err
	}
	// The program keeps the connection open for more; its answer ends with an
	// empty line.
	var answer strings.Builder
	buf := make([]byte, 256)
	for !strings.HasSuffix(answer.String(), "\n\n") {
		n, err := c.Read(buf)
		answer.Write(buf[:n])
		if err != nil {
			return err
		}
	}
	if got := strings.TrimSpace(answer.String()); got != "errno=0" {
		return refusedError(got)
	}
	return nil
}
