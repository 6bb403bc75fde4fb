package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
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
	return appendBody(make([]byte, 0, 512+len(r.Input)), r)
}

// appendBody appends what encode returns. Every request that is allowed waits
// for it, so that it is written out by hand; a test holds it and what
// encoding/json would write together.
func appendBody(dst []byte, r *Record) ([]byte, error) {
	if r.Kind == "" {
		return dst, errors.New("encoding an audit record: it has no kind")
	}
	dst = append(dst, `,"time":"`...)
	dst, err := r.Time.UTC().AppendText(dst)
	if err != nil {
		return dst, fmt.Errorf("encoding an audit record of kind %q: its time: %w", r.Kind, err)
	}
	dst = append(dst, '"')
	dst = appendMember(dst, `,"kind":`, string(r.Kind))
	if dst, err = appendMembers(dst, r); err != nil {
		return dst, err
	}
	return append(dst, '}'), nil
}

// appendMembers appends all members but seq, time and kind, each with a comma
// in front.
func appendMembers(dst []byte, r *Record) (_ []byte, err error) {
	dst = appendMember(dst, `,"decision":`, r.Decision)
	if r.Allow != nil {
		dst = append(dst, `,"allow":`...)
		dst = strconv.AppendBool(dst, *r.Allow)
	}
	dst = appendMember(dst, `,"reason":`, r.Reason)
	dst = appendMember(dst, `,"message":`, r.Message)
	dst = appendFact(dst, r.Fact)
	dst = appendMember(dst, `,"remedy":`, r.Remedy)
	dst = appendMember(dst, `,"app":`, r.App)
	dst = appendMember(dst, `,"rule":`, r.Rule)
	dst = appendMember(dst, `,"subject":`, r.Subject)
	dst = appendMember(dst, `,"device":`, r.Device)
	dst = appendMember(dst, `,"session":`, r.Session)
	dst = appendMember(dst, `,"flow":`, r.Flow)
	dst = appendMember(dst, `,"method":`, r.Method)
	dst = appendMember(dst, `,"host":`, r.Host)
	dst = appendMember(dst, `,"path":`, r.Path)
	dst = appendMember(dst, `,"request_hash":`, r.RequestHash)
	dst = appendMember(dst, `,"remote":`, r.Remote)
	dst = appendMember(dst, `,"revision":`, r.Revision)
	dst = appendMember(dst, `,"actor":`, r.Actor)
	dst = appendMember(dst, `,"outcome":`, r.Outcome)
	dst = appendNumber(dst, `,"status":`, int64(r.Status))
	dst = appendNumber(dst, `,"bytes_in":`, r.BytesIn)
	dst = appendNumber(dst, `,"bytes_out":`, r.BytesOut)
	dst = appendNumber(dst, `,"duration_ms":`, r.DurationMS)
	dst = appendDetail(dst, r.Detail)
	if len(r.Input) > 0 {
		if dst, err = appendInput(append(dst, `,"input":`...), r); err != nil {
			return dst, fmt.Errorf("encoding an audit record of kind %q: %w", r.Kind, err)
		}
	}
	dst = appendMember(dst, `,"person":`, r.Person)
	if r.Sealed != "" {
		dst = appendQuoted(append(dst, `,"sealed":`...), r.Sealed)
	}
	if len(r.SealedFields) > 0 {
		open := `,"sealed_fields":{`
		for _, f := range slices.Sorted(maps.Keys(r.SealedFields)) {
			dst = appendQuoted(append(dst, open...), f)
			dst = appendQuoted(append(dst, ':'), r.SealedFields[f])
			open = ","
		}
		dst = append(dst, '}')
	}
	if r.Erased {
		dst = append(dst, `,"erased":true`...)
	}
	dst = appendNames(dst, `,"expired":[`, r.Expired)
	return appendNames(dst, `,"unreadable":[`, r.Unreadable), nil
}

func appendNames(dst []byte, open string, names []string) []byte {
	if len(names) == 0 {
		return dst
	}
	for _, f := range names {
		dst = appendQuoted(append(dst, open...), f)
		open = ","
	}
	return append(dst, ']')
}

func appendMember(dst []byte, name, s string) []byte {
	if s == "" {
		return dst
	}
	return appendString(append(dst, name...), s)
}

func appendFact(dst []byte, f *policy.Fact) []byte {
	if f == nil {
		return dst
	}
	dst = append(dst, `,"fact":{"name":`...)
	dst = appendString(dst, f.Name)
	dst = append(dst, `,"value":`...)
	dst = appendString(dst, f.Value)
	dst = append(dst, `,"wanted":`...)
	dst = appendString(dst, f.Wanted)
	return append(dst, '}')
}

func appendNumber(dst []byte, name string, n int64) []byte {
	if n == 0 {
		return dst
	}
	return strconv.AppendInt(append(dst, name...), n, 10)
}

// appendString appends a string as JSON, of its beginning at most MaxString.
func appendString(dst []byte, s string) []byte {
	if len(s) > MaxString {
		s = clip(s)
	}
	return appendQuoted(dst, s)
}

// appendQuoted appends a string as JSON, with what could be taken for something
// else escaped.
func appendQuoted(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7F || c == '"' || c == '\\' {
			var b bytes.Buffer
			enc := json.NewEncoder(&b)
			enc.SetEscapeHTML(false)                         // a reader of the log is not a browser
			_ = enc.Encode(strings.ToValidUTF8(s, "\uFFFD")) // a string never fails
			return append(dst, escape(bytes.TrimSuffix(b.Bytes(), []byte{'\n'}))...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

func appendDetail(dst []byte, detail map[string]string) []byte {
	if len(detail) == 0 {
		return dst
	}
	dst = append(dst, `,"detail":{`...)
	detail = clipDetail(detail)
	for i, k := range slices.Sorted(maps.Keys(detail)) {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendQuoted(dst, k)
		dst = append(dst, ':')
		dst = appendQuoted(dst, detail[k])
	}
	return append(dst, '}')
}

// appendInput appends an Input of at most MaxInput, in one line and valid.
func appendInput(dst []byte, r *Record) ([]byte, error) {
	in := []byte(r.Input)
	if len(in) > MaxInput {
		if !json.Valid(in) {
			return dst, errors.New("its input is not JSON")
		}
		return append(dst, cutInput(in)...), nil
	}
	if !r.InputCompact {
		var b bytes.Buffer
		if err := json.Compact(&b, in); err != nil {
			return dst, fmt.Errorf("its input: %w", err)
		}
		in = bytes.ToValidUTF8(b.Bytes(), []byte("\uFFFD"))
	}
	return append(dst, escape(in)...), nil
}

// cutInput stands for an Input that is not kept.
func cutInput(in []byte) []byte {
	return fmt.Appendf(nil, `{"cut":{"bytes":%d,"sha256":"%x"}}`, len(in), sha256.Sum256(in))
}

// appendLine appends record number seq to dst.
func appendLine(dst []byte, seq uint64, body []byte) []byte {
	dst = append(dst, seqPrefix[:len(seqPrefix)-1]...)
	dst = strconv.AppendUint(dst, seq, 10)
	dst = append(dst, body...)
	return append(dst, '\n')
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
		// Eight bytes at a time while none is 0x7F (one more sets its high bit) or above.
		if rest := line[i:]; len(rest) >= 8 {
			if x := binary.LittleEndian.Uint64(rest); (x|(x+0x0101010101010101))&0x8080808080808080 == 0 {
				i += 8
				continue
			}
		}
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
