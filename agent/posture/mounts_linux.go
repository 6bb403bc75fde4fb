package posture

import (
	"errors"
	"fmt"
	"strings"
)

// mount is one line of mountinfo.
type mount struct {
	device string // "253:0"
	point  string
	fstype string
	source string
}

// parseMountinfo reads proc_pid_mountinfo(5). A line it cannot read is an
// error: a mount that is overlooked would make a laptop look better than it is.
func parseMountinfo(text string) ([]mount, error) {
	var all []mount
	for i, line := range strings.Split(text, "\n") {
		if line == "" {
			continue
		}
		f := strings.Split(line, " ")
		sep := 0
		for j := 6; j < len(f); j++ {
			if f[j] == "-" {
				sep = j
				break
			}
		}
		if sep == 0 || len(f) < sep+3 || !isDevice(f[2]) || !strings.HasPrefix(f[4], "/") {
			return nil, fmt.Errorf("mountinfo line %d is not understood", i+1)
		}
		all = append(all, mount{device: f[2], point: unescape(f[4]), fstype: f[sep+1], source: unescape(f[sep+2])})
	}
	if len(all) == 0 {
		return nil, errors.New("mountinfo is empty")
	}
	return all, nil
}

// isDevice says whether s is MAJOR:MINOR.
func isDevice(s string) bool {
	major, minor, ok := strings.Cut(s, ":")
	return ok && isNumber(major) && isNumber(minor)
}

func isNumber(s string) bool {
	return s != "" && len(s) <= 10 && strings.Trim(s, "0123456789") == ""
}

// unescape undoes the kernel's octal escapes (\040 for a space).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && isOctal(s[i+1:i+4]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(s string) bool { return s[0] <= '3' && strings.Trim(s, "01234567") == "" }

// mountAt returns what is mounted exactly there, the topmost last; nil if
// nothing is.
func mountAt(all []mount, point string) *mount {
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].point == point {
			return &all[i]
		}
	}
	return nil
}

// mountOf returns the mount a path lies on.
func mountOf(all []mount, path string) *mount {
	for p := path; ; {
		if m := mountAt(all, p); m != nil {
			return m
		}
		i := strings.LastIndexByte(p, '/')
		if i < 0 || p == "/" {
			return nil
		}
		p = p[:max(i, 1)]
	}
}

// swap is one line of /proc/swaps.
type swap struct {
	path string
	file bool // else a partition
}

// parseSwaps reads proc_swaps(5).
func parseSwaps(text string) ([]swap, error) {
	var all []swap
	for i, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case i == 0:
			if f[0] != "Filename" {
				return nil, errors.New("swaps has no heading")
			}
		case len(f) < 5 || !strings.HasPrefix(f[0], "/"):
			return nil, fmt.Errorf("swaps line %d is not understood", i+1)
		case f[1] == "file":
			all = append(all, swap{unescape(f[0]), true})
		case f[1] == "partition":
			all = append(all, swap{unescape(f[0]), false})
		default:
			return nil, fmt.Errorf("swaps line %d is of a kind that is not known: %s", i+1, f[1])
		}
	}
	return all, nil
}
