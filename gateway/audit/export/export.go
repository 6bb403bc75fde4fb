// Package export writes records of the decision log in the forms that other
// systems read: JSON Lines, OCSF, CEF and CSV. docs/audit.md describes each.
//
// Every form names the node and the record's sequence number: together they are
// the record's identity, by which a receiver drops what it got twice.
package export

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/people"
)

// A Format turns one record, and the line it is stored as, into one line of its
// own with a newline at its end. It escapes what came from outside: no value can
// end the line or be taken for a field's name.
type Format func(to []byte, node string, line []byte, r *audit.Record) ([]byte, error)

// Formats are the forms by name.
var Formats = map[string]Format{"jsonl": JSONLines, "ocsf": OCSF, "cef": CEF, "csv": CSV}

// Names of the Formats, for help texts and errors.
var Names = []string{"jsonl", "ocsf", "cef", "csv"}

// Range picks records by their time: from Since on and before Until. A zero end
// is open.
type Range struct{ Since, Until time.Time }

func (r Range) holds(t time.Time) bool {
	return (r.Since.IsZero() || !t.Before(r.Since)) && (r.Until.IsZero() || t.Before(r.Until))
}

// Log is the decision log to export: the name of its file, and what opens the
// personal data of a line and completes its record (nil leaves both).
type Log struct {
	File   string
	Reveal func(line []byte, r *audit.Record) ([]byte, error)
}

// Write writes the records of a log that are within a Range, and returns how
// many.
func Write(w io.Writer, log Log, node string, within Range, f Format, name string) (n int, err error) {
	if name == "csv" {
		if _, err := io.WriteString(w, csvHeader()); err != nil {
			return 0, fmt.Errorf("exporting: %w", err)
		}
	}
	var buf []byte
	scanErr := audit.Scan(log.File, func(line []byte, r *audit.Record) bool {
		if !within.holds(r.Time) {
			return true
		}
		if log.Reveal != nil {
			if line, err = log.Reveal(line, r); err != nil {
				err = fmt.Errorf("exporting: %w", err)
				return false
			}
		}
		if buf, err = f(buf[:0], node, line, r); err != nil {
			err = fmt.Errorf("exporting record %d: %w", r.Seq, err)
			return false
		}
		if _, err = w.Write(buf); err != nil {
			err = fmt.Errorf("exporting: %w", err)
			return false
		}
		n++
		return true
	})
	if err == nil {
		err = scanErr
	}
	return n, err
}

// JSONLines is the line with the node in front of it.
func JSONLines(to []byte, node string, line []byte, _ *audit.Record) ([]byte, error) {
	to = append(to, `{"node":`...)
	name, err := json.Marshal(node)
	if err != nil {
		return nil, err
	}
	to = append(append(to, name...), ',')
	return append(append(to, line[1:]...), '\n'), nil
}

// columns of the CSV form, in order.
var columns = []struct {
	name  string
	value func(r *audit.Record) string
}{
	{"seq", func(r *audit.Record) string { return strconv.FormatUint(r.Seq, 10) }},
	{"time", func(r *audit.Record) string { return r.Time.UTC().Format(time.RFC3339Nano) }},
	{"kind", func(r *audit.Record) string { return string(r.Kind) }},
	{"allow", func(r *audit.Record) string {
		if r.Allow == nil {
			return ""
		}
		return strconv.FormatBool(*r.Allow)
	}},
	{"reason", func(r *audit.Record) string { return r.Reason }},
	{"app", func(r *audit.Record) string { return r.App }},
	{"subject", subject},
	{"device", func(r *audit.Record) string { return r.Device }},
	{"session", func(r *audit.Record) string { return r.Session }},
	{"flow", func(r *audit.Record) string { return r.Flow }},
	{"remote", func(r *audit.Record) string { return orWhy(r, people.Address, r.Remote) }},
	{"method", func(r *audit.Record) string { return r.Method }},
	{"host", func(r *audit.Record) string { return r.Host }},
	{"path", func(r *audit.Record) string { return orWhy(r, people.Request, r.Path) }},
	{"request_hash", func(r *audit.Record) string { return orWhy(r, people.Request, r.RequestHash) }},
	{"fact", func(r *audit.Record) string {
		if r.Fact == nil {
			return orWhy(r, people.Facts, "")
		}
		return r.Fact.Name + ": " + r.Fact.Value
	}},
	{"rule", func(r *audit.Record) string { return r.Rule }},
	{"revision", func(r *audit.Record) string { return r.Revision }},
	{"decision", func(r *audit.Record) string { return r.Decision }},
	{"actor", func(r *audit.Record) string { return r.Actor }},
	{"outcome", func(r *audit.Record) string { return r.Outcome }},
	{"status", func(r *audit.Record) string { return number(int64(r.Status)) }},
	{"bytes_in", func(r *audit.Record) string { return number(r.BytesIn) }},
	{"bytes_out", func(r *audit.Record) string { return number(r.BytesOut) }},
	{"duration_ms", func(r *audit.Record) string { return number(r.DurationMS) }},
	{"message", func(r *audit.Record) string { return r.Message }},
	{"person", func(r *audit.Record) string { return r.Person }},
	{"count", func(r *audit.Record) string {
		if r.Kind != audit.KindFolded {
			return ""
		}
		return r.Detail["count"]
	}},
	{"detail", detail},
}

// detail is what a kind has besides, as a JSON object.
func detail(r *audit.Record) string {
	if len(r.Detail) == 0 {
		return ""
	}
	o := object{}
	for k, v := range r.Detail {
		o[k] = v
	}
	text, _ := appendObject(nil, o) // strings always can be written
	return strings.TrimSuffix(string(text), "\n")
}

// subject is who a record is about, or that this was erased.
func subject(r *audit.Record) string {
	if r.Erased {
		return "erased"
	}
	return orWhy(r, people.Person, r.Subject)
}

// expired stands for what was there and cannot be opened any more, unreadable
// for what cannot although its key was not destroyed.
const (
	expired    = "expired"
	unreadable = "unreadable"
)

// orWhy is a member that is sealed as a field, or why it is not there.
func orWhy(r *audit.Record, f people.Field, value string) string {
	if value == "" && slices.Contains(r.Expired, f.String()) {
		return expired
	}
	if value == "" && slices.Contains(r.Unreadable, f.String()) {
		return unreadable
	}
	return value
}

// kindOf is what a record is about: of a folded one, what was folded.
func kindOf(r *audit.Record) audit.Kind {
	if r.Kind == audit.KindFolded {
		return audit.Kind(r.Detail["kind"])
	}
	return r.Kind
}

// span is when the first and the last of a folded record came, in milliseconds.
func span(r *audit.Record) (first, last int64, ok bool) {
	from, err1 := time.Parse(time.RFC3339Nano, r.Detail["first"])
	to, err2 := time.Parse(time.RFC3339Nano, r.Detail["last"])
	return from.UnixMilli(), to.UnixMilli(), r.Kind == audit.KindFolded && err1 == nil && err2 == nil
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func csvHeader() string {
	names := []string{"node"}
	for _, c := range columns {
		names = append(names, c.name)
	}
	return strings.Join(names, ",") + "\r\n"
}

// CSV is RFC 4180 with one header line (see Write). A value that a spreadsheet
// would take for a formula has an apostrophe in front of it.
func CSV(to []byte, node string, _ []byte, r *audit.Record) ([]byte, error) {
	fields := make([]string, 0, len(columns)+1)
	fields = append(fields, cell(node))
	for _, c := range columns {
		fields = append(fields, cell(c.value(r)))
	}
	var b strings.Builder
	w := csv.NewWriter(&b)
	w.UseCRLF = true
	if err := w.Write(fields); err != nil {
		return nil, err
	}
	w.Flush()
	return append(to, b.String()...), w.Error()
}

func cell(s string) string {
	s = oneLine(s)
	if s != "" && strings.ContainsRune("=+-@\t", rune(s[0])) {
		return "'" + s
	}
	return s
}

// oneLine shows control and invisible characters instead of obeying them.
func oneLine(s string) string {
	if !strings.ContainsFunc(s, hidden) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case !hidden(r):
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08X`, r)
		default:
			fmt.Fprintf(&b, `\u%04X`, r)
		}
	}
	return b.String()
}
