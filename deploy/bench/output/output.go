// Package output reads what programs that measure print.
package output

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

var (
	wrkRate  = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	wrkFault = regexp.MustCompile(`(?m)^\s*(Non-2xx or 3xx responses:|Socket errors:).*$`)
)

// Wrk returns the requests per second that wrk(1) printed. It refuses a run in
// which anything was answered otherwise than with the page: a refusal is quick,
// too.
func Wrk(out string) (rate float64, err error) {
	if fault := wrkFault.FindString(out); fault != "" {
		return 0, fmt.Errorf("wrk: %s", strings.TrimSpace(fault))
	}
	m := wrkRate.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("wrk printed no rate: %.300s", out)
	}
	if rate, err = strconv.ParseFloat(m[1], 64); err != nil || rate == 0 {
		return 0, fmt.Errorf("wrk printed the rate %q", m[1])
	}
	return rate, nil
}

// Benchmarks returns what `go test -bench` printed
// (https://go.dev/design/14313-benchmark-format), by name and unit.
func Benchmarks(out string) (map[string]float64, error) {
	s := map[string]float64{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		name := f[0]
		if i := strings.LastIndex(name, "-"); i > 0 { // GOMAXPROCS
			name = name[:i]
		}
		for i := 2; i+1 < len(f); i += 2 {
			v, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				return nil, fmt.Errorf("reading the benchmark %s: %w", name, err)
			}
			s[name+" "+f[i+1]] = v
		}
	}
	if len(s) == 0 {
		return nil, fmt.Errorf("there was no benchmark: %.300s", out)
	}
	return s, nil
}
