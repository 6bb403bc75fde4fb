package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/portvakt/portvakt/policy"
)

// Bounds of one record. Together they keep every line below MaxLine, whatever
// a client sends: a control character takes six bytes in JSON.
const (
	// MaxString is how much of a string is kept, in bytes. What is longer is
	// cut and ends in a marker with the length and SHA-256 of the whole.
	MaxString = 8 << 10
	// MaxInput is the largest Input that is kept, in bytes.
	MaxInput = 64 << 10
	// MaxDetail is how many entries of Detail are kept.
	MaxDetail = 32
	// MaxLine is the longest line a reader needs to expect, in bytes.
	MaxLine = 8 << 20
)

// seqPrefix begins every line. A record is encoded before its number is known;
// the number replaces the zero.
const seqPrefix = `{"seq":0`

// encode returns the line of r without its number and without the newline. It
// does not change what r points to.
func encode(r *Record) ([]byte, error) {
	if r.Kind == "" {
		return nil, errors.New("encoding an audit record: it has no kind")
	}
	c := *r
	c.Seq = 0
	c.Time = c.Time.UTC()
	if err := bound(&c); err != nil {
		return nil, fmt.Errorf("encoding an audit record of kind %q: %w", r.Kind, err)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // a reader of the log is not a browser
	if err := enc.Encode(&c); err != nil {
		return nil, fmt.Errorf("encoding an audit record of kind %q: %w", r.Kind, err)
	}
	line := escape(bytes.TrimSuffix(b.Bytes(), []byte{'\n'}))
	return line[len(seqPrefix):], nil
}

// appendLine appends record number seq to dst.
func appendLine(dst []byte, seq uint64, body []byte) []byte {
	dst = append(dst, seqPrefix[:len(seqPrefix)-1]...)
	dst = strconv.AppendUint(dst, seq, 10)
	dst = append(dst, body...)
	return append(dst, '\n')
}

// bound cuts what is too long and replaces what is not UTF-8. Fact and Detail
// are copied when they change: they belong to the caller.
func bound(r *Record) error {
	kind := string(r.Kind)
	for _, s := range []*string{
		&kind, &r.Decision, &r.Reason, &r.Message, &r.Remedy, &r.App, &r.Rule,
		&r.Subject, &r.Device, &r.Session, &r.Flow, &r.Method, &r.Host, &r.Path,
		&r.Remote, &r.Revision, &r.Actor, &r.Outcome,
	} {
		*s = clip(*s)
	}
	r.Kind = Kind(kind)
	if f := r.Fact; f != nil {
		r.Fact = &policy.Fact{Name: clip(f.Name), Value: clip(f.Value), Wanted: clip(f.Wanted)}
	}
	if len(r.Detail) > 0 {
		r.Detail = clipDetail(r.Detail)
	}
	if r.Input == nil {
		return nil
	}
	if len(r.Input) > MaxInput {
		if !json.Valid(r.Input) { // below the bound the encoder sees to it
			return errors.New("its input is not JSON")
		}
		r.Input = fmt.Appendf(nil, `{"cut":{"bytes":%d,"sha256":"%x"}}`, len(r.Input), sha256.Sum256(r.Input))
	}
	if !utf8.Valid(r.Input) {
		r.Input = bytes.ToValidUTF8(r.Input, []byte("\uFFFD"))
	}
	return nil
}

// clip returns s, or its beginning and a marker if it is longer than
// MaxString, with U+FFFD for what is not UTF-8. The hash is of the whole
// string as it came.
func clip(s string) string {
	if len(s) <= MaxString {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	end := MaxString
	for end > MaxString-utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	return strings.ToValidUTF8(s[:end], "\uFFFD") + fmt.Sprintf("...[cut: %d bytes, sha256 %x]", len(s), sha256.Sum256([]byte(s)))
}

func clipDetail(d map[string]string) map[string]string {
	c := make(map[string]string, min(len(d), MaxDetail+1))
	for _, k := range slices.Sorted(maps.Keys(d)) {
		if len(c) == MaxDetail {
			c["cut"] = fmt.Sprintf("%d of %d entries left out", len(d)-MaxDetail, len(d))
			break
		}
		c[clip(k)] = clip(d[k])
	}
	return c
}

// escape writes what a terminal or an eye could take for something else as
// \uXXXX: DEL, C1 controls, bidirectional and other invisible characters, line
// and paragraph separators. encoding/json did it for the C0 controls. Outside
// of strings JSON is ASCII, so this never touches structure.
func escape(line []byte) []byte {
	i := 0
	for i < len(line) {
		if line[i] < 0x7F {
			i++
			continue
		}
		r, n := utf8.DecodeRune(line[i:])
		if hidden(r) {
			break
		}
		i += n
	}
	if i == len(line) {
		return line
	}
	out := make([]byte, i, len(line)+64)
	copy(out, line)
	for i < len(line) {
		r, n := utf8.DecodeRune(line[i:])
		switch {
		case !hidden(r):
			out = append(out, line[i:i+n]...)
		case r > 0xFFFF:
			r -= 0x10000
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xD800+(r>>10), 0xDC00+(r&0x3FF))
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		i += n
	}
	return out
}

func hidden(r rune) bool {
	return r >= 0x7F && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}
