package sink_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/export"
	"github.com/portvakt/portvakt/gateway/audit/sink"
	"github.com/portvakt/portvakt/policy"
)

// logRecord is one of an ExportLogsServiceRequest; attributes as text.
type logRecord struct {
	TimeUnixNano   string
	SeverityNumber int
	Body           struct{ StringValue string }
	Attributes     []struct {
		Key   string
		Value struct {
			IntValue, StringValue string
			BoolValue             *bool
		}
	}
	attrs map[string]string
}

func logRecords(t *testing.T, r io.Reader) []logRecord {
	t.Helper()
	var req struct {
		ResourceLogs []struct {
			ScopeLogs []struct{ LogRecords []logRecord }
		}
	}
	if err := json.NewDecoder(r).Decode(&req); err != nil {
		t.Error(err)
		return nil
	}
	all := req.ResourceLogs[0].ScopeLogs[0].LogRecords
	for i := range all {
		all[i].attrs = map[string]string{}
		for _, a := range all[i].Attributes {
			text := a.Value.IntValue + a.Value.StringValue
			if a.Value.BoolValue != nil {
				text = strconv.FormatBool(*a.Value.BoolValue)
			}
			all[i].attrs[a.Key] = text
		}
	}
	return all
}

// A collector that refuses, breaks off, sends elsewhere and takes a batch
// without saying so gets everything, in order.
func TestOTLP(t *testing.T) {
	b := newBench(t)
	var in inbox
	var calls atomic.Int64
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tries := calls.Add(1)
		switch tries {
		case 1:
			w.Header().Set("Retry-After", "1")
			http.Error(w, `{"code":14,"message":"not now"}`, http.StatusServiceUnavailable)
			return
		case 2:
			_, _ = io.CopyN(io.Discard, r.Body, 900)
			panic(http.ErrAbortHandler)
		case 3:
			http.Redirect(w, r, "https://elsewhere.invalid/", http.StatusTemporaryRedirect)
			return
		}
		if r.URL.Path != "/v1/logs" || r.Header.Get("Content-Type") != "application/json" {
			t.Error(r.URL, r.Header)
		}
		for _, l := range logRecords(t, r.Body) {
			n, err := strconv.ParseUint(l.attrs["portvakt.seq"], 10, 64)
			if err != nil || l.TimeUnixNano == "" || l.SeverityNumber != 9 || l.attrs["portvakt.app"] != "crm" || l.attrs["event.name"] != "portvakt.decision" {
				t.Errorf("%v %+v", err, l)
			}
			in.add(n)
		}
		if tries == 4 || tries == 6 { // it has them, and nobody learns of it
			panic(http.ErrAbortHandler)
		}
	}))
	defer srv.Close()
	srv.Config.ErrorLog = nil
	cfg := b.config("otlp", "", srv.URL+"/v1/logs")
	cfg.CAFile = caFile(t, b.dir, srv)
	b.write(1200)
	b.during(cfg, func(s *sink.Sink) {
		b.until("the fault", func() bool { return s.Healthy() != nil })
		b.until("sending", func() bool { return s.Sent() == 1200 && s.Healthy() == nil })
	})
	if m := in.missing(t, 1200); m != 0 || in.count() < 1700 {
		t.Errorf("record %d did not come, %d came", m, in.count())
	}
}

// A collector that takes a batch but for some records is not asked again (OTLP
// forbids it), and what it says is not lost with them.
func TestOTLPPartialSuccess(t *testing.T) {
	for answer, want := range map[string]string{
		`{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"too\u001b[2J old"}}`: "rejected=3",
		`{"partialSuccess":{"rejectedLogRecords":2}}`:                                     "rejected=2",
		`{"partialSuccess":{}}`: "",
		`{}`:                    "",
		`nonsense`:              "",
		``:                      "",
	} {
		b := newBench(t)
		b.write(5)
		srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, answer) }))
		defer srv.Close()
		var said bytes.Buffer
		cfg := b.config("otlp", "", srv.URL)
		cfg.CAFile, cfg.Log = caFile(t, b.dir, srv), slog.New(slog.NewTextHandler(&said, nil))
		b.during(cfg, func(s *sink.Sink) { b.until("sending", func() bool { return s.Sent() == 5 }) })
		if text := said.String(); want == "" && text != "" || !strings.Contains(text, want) || want != "" && !strings.Contains(text, "from=1 to=5") || strings.Contains(text, "\x1b") {
			t.Errorf("%s: it said %q", answer, text)
		}
	}
}

// Whatever stands in a record stands in the collector's, but its input.
func TestOTLPHasEveryMember(t *testing.T) {
	deny := false
	rec := &audit.Record{
		Allow: &deny, Fact: &policy.Fact{Name: "fact-name", Value: "fact-value", Wanted: "fact-wanted"},
		Detail: map[string]string{"k": "detail-v"}, Erased: true, Kind: audit.KindDecision, Expired: []string{"address", "facts"}, Unreadable: []string{"device", "request"},
	}
	want := []string{"fact-name", "fact-value", "fact-wanted", "detail-v", "false", "true", "portvakt.decision", "address facts", "device request"}
	v := reflect.ValueOf(rec).Elem()
	for i := range v.NumField() {
		name, f := v.Type().Field(i).Name, v.Field(i)
		text := "the-" + strings.ToLower(name)
		switch {
		case !f.IsZero() || name == "Seq" || name == "Time" || name == "Input" || name == "InputCompact" || name == "Sealed" || name == "SealedFields":
			continue
		case f.Kind() == reflect.String:
			f.SetString(text)
		case f.CanInt():
			f.SetInt(int64(1000 + i))
			text = strconv.Itoa(1000 + i)
		default:
			t.Fatalf("what is %s?", name)
		}
		want = append(want, text)
	}
	line, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t)
	var got []logRecord
	srv := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = append(got, logRecords(t, r.Body)...) }))
	defer srv.Close()
	cfg := b.config("otlp", "", srv.URL)
	cfg.CAFile = caFile(t, b.dir, srv)
	log := filepath.Join(t.TempDir(), audit.FileName)
	text := fmt.Sprintf(`{"seq":1,"time":%q,%s`, time.Now().UTC().Format(time.RFC3339), strings.SplitN(string(line), `"0001-01-01T00:00:00Z",`, 2)[1])
	writeFile(t, log, text+"\n")
	cfg.Decisions = export.Log{File: log}
	b.during(cfg, func(s *sink.Sink) { b.until("sending", func() bool { return s.Sent() == 1 }) })
	if len(got) != 1 || got[0].SeverityNumber != 13 {
		t.Fatalf("got %+v", got)
	}
	has := got[0].Body.StringValue
	for _, v := range got[0].attrs {
		has += "\n" + v
	}
	for _, w := range want {
		if !strings.Contains("\n"+has+"\n", "\n"+w+"\n") {
			t.Errorf("it lacks %q:\n%s", w, has)
		}
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
