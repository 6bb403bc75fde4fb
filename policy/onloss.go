package policy

import (
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
)

const wantedOnLoss = "cut, or drain with a time: {drain: 15m}"

// onLoss reads `cut` or `drain: DURATION`.
func (f *yamlFile) onLoss(fd field) OnLoss {
	switch n := fd.value.(type) {
	case *ast.StringNode:
		text := strings.Trim(strings.TrimPrefix(n.Value, "drain"), ": ") // all in one word
		_, err := time.ParseDuration(text)
		switch {
		case n.Value == "cut":
		case err == nil:
			f.fail(n, fd.path, "wanted %s, found %q; did you mean {drain: %s}?", wantedOnLoss, n.Value, text)
		case text == "":
			f.fail(n, fd.path, "wanted how long what is open may go on: {drain: 15m}, found drain without a time")
		default:
			f.fail(n, fd.path, "wanted %s, found %q%s", wantedOnLoss, n.Value, DidYouMean(n.Value, "cut", "drain"))
		}
		return OnLoss{}
	case *ast.MappingNode, *ast.MappingValueNode:
	default:
		f.fail(n, fd.path, "wanted %s, found %s", wantedOnLoss, describe(n))
		return OnLoss{}
	}
	fields := f.mapping(fd.value, fd.path, []string{"drain"})
	if drain, ok := fields["drain"]; ok {
		return OnLoss{Drain: f.drainTime(drain)}
	}
	if len(fields) == 0 && len(f.problems) == 0 {
		f.fail(fd.value, fd.path, "wanted %s, found no key", wantedOnLoss)
	}
	return OnLoss{}
}

func (f *yamlFile) drainTime(fd field) time.Duration {
	const wanted = "a time from 1s to 30m in whole seconds, such as 15m or 90s"
	if n, ok := fd.value.(*ast.IntegerNode); ok {
		f.fail(n, fd.path, "wanted %s, found %s without a unit", wanted, describe(n))
		return 0
	}
	var d time.Duration
	f.checked(fd, func(s string) string {
		var err error
		if d, err = time.ParseDuration(s); err != nil || d < time.Second || d > MaxDrain || d%time.Second != 0 {
			return wanted
		}
		return ""
	})
	return d
}

// DidYouMean names the word that s is a slip of, if it is near one.
func DidYouMean(s string, words ...string) string {
	best, least := "", len(s)
	for _, w := range words {
		if d := distance(strings.ToLower(s), w); d < least && d <= len(w)/2 && len(w) > 2 {
			best, least = w, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

// distance is how many letters must be put in, taken out or changed to make b
// of a (Levenshtein).
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := []int{i + 1}
		for j := range len(b) {
			change := row[j]
			if a[i] != b[j] {
				change++
			}
			next = append(next, slices.Min([]int{change, row[j+1] + 1, next[j] + 1}))
		}
		row = next
	}
	return row[len(b)]
}
