package posture

import (
	"context"
	"path/filepath"

	"github.com/portvakt/portvakt/internal/wire"
)

func supported(name string) bool {
	return name == wire.SignalDiskEncryption || name == wire.SignalHostFirewall
}

// collect runs the collectors of this system. The helper sees more than the
// agent does, so that what it says of a signal replaces the agent's own.
func collect(ctx context.Context, cfg Config) []wire.Signal {
	found := collectFiles(cfg.Root, nil)
	if cfg.HelperSocket == "" {
		return found
	}
	more, err := askHelper(ctx, cfg.HelperSocket, isSlash(cfg.Root))
	if err != nil {
		cfg.Log.Debug("posture helper not reached", "err", err)
		return found
	}
	for i := range found {
		for _, s := range more {
			if s.Name == found[i].Name {
				found[i] = s
			}
		}
	}
	return found
}

// collectFiles judges the tree at root; kernel, if not nil, is asked for the
// firewall rules in force.
func collectFiles(root string, kernel func() (filtering, error)) []wire.Signal {
	t, err := openTree(root)
	if err != nil {
		f := unknown("error: " + err.Error())
		return []wire.Signal{f.signal(wire.SignalDiskEncryption), f.signal(wire.SignalHostFirewall)}
	}
	defer t.close()
	front := readFrontEnds(t)
	firewall := front.finding
	if kernel != nil {
		firewall = hostFirewall(t, front, kernel)
	}
	return []wire.Signal{diskEncryption(t).signal(wire.SignalDiskEncryption), firewall.signal(wire.SignalHostFirewall)}
}

func isSlash(root string) bool { return filepath.Clean(root) == "/" }
