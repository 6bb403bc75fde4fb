package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/portvakt/portvakt/policy"
)

// all returns a record that has s wherever a string can be.
func all(s string) Record {
	in, err := json.Marshal(map[string]string{"path": s})
	if err != nil {
		panic(err)
	}
	return Record{
		Time: time.Unix(0, 0), Kind: Kind("k" + s), Decision: s, Reason: s, Message: s,
		Fact: &policy.Fact{Name: s, Value: s, Wanted: s}, Remedy: s, App: s, Rule: s, Subject: s, Device: s,
		Session: s, Flow: s, Method: s, Host: s, Path: s, RequestHash: s, Remote: s, Revision: s, Actor: s, Outcome: s,
		Detail: map[string]string{s: s, "k": s}, Input: in,
	}
}

// line encodes r as number 7 and checks what holds for every line.
func line(t *testing.T, r Record) (string, *Record) {
	t.Helper()
	body, err := encode(&r)
	if err != nil {
		t.Fatal(err)
	}
	b := appendLine(nil, 7, body)
	if bytes.IndexByte(b, '\n') != len(b)-1 || len(b) > MaxLine || !utf8.Valid(b) {
		t.Fatalf("not one line of UTF-8: %d bytes", len(b))
	}
	for _, c := range string(b[:len(b)-1]) {
		if unicode.IsControl(c) || unicode.In(c, unicode.Cf, unicode.Zl, unicode.Zp) {
			t.Fatalf("%U stands unescaped in %.200q", c, b)
		}
	}
	got, err := parseLine(b[:len(b)-1])
	if err != nil || got.Seq != 7 {
		t.Fatalf("%v in %.200q", err, b)
	}
	return string(b), got
}

// It does not matter where in a text the invisible stands.
func TestInvisibleIsEscapedEverywhere(t *testing.T) {
	for c, want := range map[string]string{"\x7f": `\u007f`, "\u009b": `\u009b`, "\u202e": `\u202e`, "\U000e0041": `\udb40\udc41`, "å": "å", "~": "~"} {
		for before := range 20 {
			for after := range 10 {
				text, end := strings.Repeat("a", before), strings.Repeat("z", after)
				if got := string(escape([]byte(text + c + end))); got != text+want+end {
					t.Fatalf("%q behind %d and before %d became %s", c, before, after, got)
				}
			}
		}
	}
}

func TestPayloadsStayInTheirLine(t *testing.T) {
	for name, s := range map[string]string{
		"newlines":      "a\r\n{\"seq\":9,\"kind\":\"login\"}\n",
		"terminal":      "\x1b[31mred\x1b[0m\x1b]0;title\x07\x7f\u009b31m",
		"bidi":          "\u202Egnp.exe\u2066\u2069\u200F",
		"invisible":     "a\u200Bb\uFEFFc\U000E0041d\u00AD",
		"separators":    "a\u2028b\u2029c\u0085d",
		"NUL":           "a\x00b",
		"quotes":        `"},{"seq":8}\`,
		"not UTF-8":     "a\xff\xfe\xc0\x80b\xed\xa0\x80",
		"spreadsheet":   "=cmd|' /C calc'!A0",
		"markup":        "<script>&amp;</script>",
		"other letters": "Åsa 漢字 😀",
	} {
		t.Run(name, func(t *testing.T) {
			want := strings.ToValidUTF8(s, "\uFFFD")
			_, got := line(t, all(s))
			if got.Path != want || got.Fact.Value != want || got.Detail[want] != want {
				t.Errorf("read %q, wrote %q", got.Path, want)
			}
			// encoding/json, which made the Input, replaces byte by byte.
			var in map[string]string
			if err := json.Unmarshal(got.Input, &in); err != nil || utf8.ValidString(s) && in["path"] != want {
				t.Errorf("input %q %v", in, err)
			}
		})
	}
	// JSON that came from elsewhere, with what encoding/json would not write.
	_, got := line(t, Record{Time: time.Unix(0, 0), Kind: "k", Input: json.RawMessage("{\n \"a\": \"\xff\u202E\u007f\" }")})
	if s := string(got.Input); s != "{\"a\":\"\uFFFD\\u202e\\u007f\"}" {
		t.Errorf("%s", s)
	}
	// Go's < and & are kept as they are: the reader is no browser.
	if text, _ := line(t, all("<&>")); !strings.Contains(text, `"path":"<&>"`) {
		t.Error(text)
	}
}

func TestLongStringsAreCut(t *testing.T) {
	for _, s := range []string{strings.Repeat("a", 1<<20), strings.Repeat("漢", 1<<18), strings.Repeat("\x00", 1<<20), strings.Repeat("\xbf", 1<<20)} {
		r := all(s)
		wantInput := sha256.Sum256(r.Input)
		size := len(r.Input)
		_, got := line(t, r)
		mark := fmt.Sprintf("...[cut: %d bytes, sha256 %x]", len(s), sha256.Sum256([]byte(s)))
		if !strings.HasSuffix(got.Path, mark) || !strings.HasSuffix(got.Fact.Wanted, mark) || !strings.HasSuffix(got.Detail["k"], mark) {
			t.Errorf("%.80q ends in %q", got.Path, got.Path[len(got.Path)-100:])
		}
		if begin := strings.TrimSuffix(got.Path, mark); utf8.ValidString(s) && (!strings.HasPrefix(s, begin) || len(begin) > MaxString || len(begin) < MaxString-3) {
			t.Errorf("%d bytes are left", len(begin))
		}
		var in struct {
			Cut struct {
				Bytes  int
				SHA256 string
			}
		}
		if err := json.Unmarshal(got.Input, &in); err != nil || in.Cut.Bytes != size || in.Cut.SHA256 != fmt.Sprintf("%x", wantInput) {
			t.Errorf("%s %v", got.Input, err)
		}
		if len(r.Path) != len(s) || len(r.Detail["k"]) != len(s) || len(r.Fact.Value) != len(s) {
			t.Error("the caller's record was changed")
		}
	}
	exact := strings.Repeat("b", MaxString)
	if _, got := line(t, all(exact)); got.Path != exact {
		t.Error("a string of the largest size was cut")
	}
}

func TestDetailIsBounded(t *testing.T) {
	d := map[string]string{}
	for i := range 1000 {
		d[fmt.Sprintf("k%04d", i)] = strings.Repeat("\x01", MaxString)
	}
	before := maps.Clone(d)
	_, got := line(t, Record{Time: time.Unix(0, 0), Kind: "k", Detail: d})
	if len(got.Detail) != MaxDetail+1 || got.Detail["cut"] != "968 of 1000 entries left out" || got.Detail["k0000"] == "" {
		t.Errorf("%d entries, %q", len(got.Detail), got.Detail["cut"])
	}
	if !cmp.Equal(before, d) {
		t.Error("the caller's detail was changed")
	}
}

// The largest record there can be fits a line that readers take.
func TestLargestRecord(t *testing.T) {
	r := all(strings.Repeat("\x01", MaxString))
	r.Kind = "k"
	r.Detail = map[string]string{}
	for i := range MaxDetail {
		r.Detail[fmt.Sprint(i)+strings.Repeat("\x01", MaxString)] = strings.Repeat("\x01", 2*MaxString)
	}
	// In an Input, a C1 control takes two bytes and becomes six.
	r.Input = json.RawMessage(`"` + strings.Repeat("\u0080", MaxInput/2-1) + `"`)
	text, _ := line(t, r)
	t.Logf("%d bytes", len(text))
}

// TestEncodeIsJSONs holds the encoding by hand and encoding/json together: the
// same members in the same order, for records full and nearly empty.
func TestEncodeIsJSONs(t *testing.T) {
	full := all("a/b <c> & Åsa")
	yes, no := true, false
	full.Allow, full.Status, full.BytesIn, full.BytesOut, full.DurationMS = &yes, 502, 1, -2, 1<<62
	full.Detail = map[string]string{"z": "1", "a": "2", "m<": ">"}
	full.Time = time.Date(2026, 3, 4, 8, 0, 0, 120000000, time.UTC)
	records := []Record{full, {Kind: "k"}, {Kind: "k", Allow: &no, Detail: map[string]string{}, Fact: &policy.Fact{}}}
	// Every field alone, so that none can stand in for another or be left out.
	for i := range reflect.TypeFor[Record]().NumField() {
		one := Record{Kind: "k"}
		if reflect.TypeFor[Record]().Field(i).Tag.Get("json") != "-" {
			reflect.ValueOf(&one).Elem().Field(i).Set(reflect.ValueOf(full).Field(i))
		}
		records = append(records, one)
	}
	for _, r := range records {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(r); err != nil {
			t.Fatal(err)
		}
		body, err := encode(&r)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(appendLine(nil, 0, body)); got != b.String() {
			t.Errorf("\n got %s\nwant %s", got, b.String())
		}
	}
	if _, err := encode(&Record{Kind: "k", Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}); err == nil {
		t.Error("a time that JSON cannot hold was encoded")
	}
	if _, err := encode(&Record{Kind: "k", Input: json.RawMessage(`{"a":1}}`)}); err == nil {
		t.Error("an input that is no JSON was encoded")
	}
}
