package posture

import (
	"context"

	"github.com/portvakt/portvakt/internal/wire"
)

// Filtering is filtering.
type Filtering struct{ V4, V6 bool }

// KernelFirewall reads the rules of the calling thread's network namespace.
func KernelFirewall() (Filtering, error) {
	f, err := kernelFirewall()
	return Filtering{f.v4, f.v6}, err
}

// WithKernel judges a tree as the helper does, with the rules given.
func WithKernel(root string, f Filtering, err error) wire.Signal {
	return collectFiles(root, func() (filtering, error) { return filtering{f.V4, f.V6}, err })[1]
}

// AskHelper asks the helper; root says that it has to run as root.
func AskHelper(ctx context.Context, socket string, root bool) ([]wire.Signal, error) {
	return askHelper(ctx, socket, root)
}

// Parsers for their fuzz targets.
var (
	ParseAssignments = parseAssignments
	ParseAnswer      = parseAnswer
)

// ParseMountinfo returns the mount points.
func ParseMountinfo(text string) (points []string, err error) {
	all, err := parseMountinfo(text)
	for _, m := range all {
		points = append(points, m.point)
		if mountOf(all, m.point+"/x") == nil {
			panic("no mount holds " + m.point)
		}
	}
	return points, err
}

// ParseSwaps returns the paths.
func ParseSwaps(text string) (paths []string, err error) {
	all, err := parseSwaps(text)
	for _, s := range all {
		paths = append(paths, s.path)
	}
	return paths, err
}
