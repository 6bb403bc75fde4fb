//go:build !linux

package posture

import (
	"context"
	"errors"
	"log/slog"

	"github.com/portvakt/portvakt/internal/wire"
)

// HelperConfig says where the helper listens and for whom.
type HelperConfig struct {
	Socket   string
	Root     string
	AllowUID int
	Log      *slog.Logger
}

// RunHelper fails: there is nothing to help with on this system.
func RunHelper(context.Context, HelperConfig) error {
	return errors.New("starting the posture helper: this system has no signal that needs it")
}

func collect(context.Context, Config) []wire.Signal { return nil }

func supported(string) bool { return false }
