package refusal

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/html"

	"github.com/portvakt/portvakt/internal/page"
	"github.com/portvakt/portvakt/policy"
)

var update = flag.Bool("update", false, "write the golden files")

var at = time.Date(2026, 11, 21, 20, 30, 0, 0, time.UTC)

func decision(r policy.Reason, f *policy.Fact) policy.Decision {
	d := policy.NewDecision(r, f)
	d.ID, d.App, d.Time = "d-0123456789abcdef0123456789abcdef", "crm", at
	return d
}

func TestPageGolden(t *testing.T) {
	for name, d := range map[string]policy.Decision{
		"posture_failed": decision(policy.ReasonPostureFailed, &policy.Fact{Name: "host_firewall", Value: "fail: ufw: off", Wanted: "pass"}),
		"login_required": decision(policy.ReasonLoginRequired, nil),

		"posture_failed.sv":   decision(policy.ReasonPostureFailed, &policy.Fact{Name: "host_firewall", Value: "fail: ufw: off", Wanted: "pass"}),
		"location_unknown.fi": decision(policy.ReasonLocationUnknown, &policy.Fact{Name: "country", Value: "", Wanted: "SE"}),
	} {
		lang := "en"
		if _, l, ok := strings.Cut(name, "."); ok {
			lang = l
		}
		var got bytes.Buffer
		if err := (Answer{Decision: d, Status: StatusOf(d.Reason), App: &policy.App{Title: "Customer register"}}).page(lang).Write(&got); err != nil {
			t.Fatal(err)
		}
		head, rest, _ := strings.Cut(got.String(), "<style>")
		_, rest, _ = strings.Cut(rest, "</style>") // it is internal/page's
		shown := head + rest
		file := filepath.Join("testdata", name+".html")
		if *update {
			if err := os.WriteFile(file, []byte(shown), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), shown); d != "" {
			t.Errorf("%s (-want +got; -update rewrites):\n%s", name, d)
		}
	}
}

// Every Reason there is, and one that is not there yet, has a page.
func TestPageForEveryReason(t *testing.T) {
	reasons := []policy.Decision{{Reason: "from_the_future", Message: "Something new.", Remedy: "Wait.", ID: "d-1", Time: at}}
	for r := range policy.Reasons {
		if r != policy.ReasonAllowed {
			reasons = append(reasons, decision(r, &policy.Fact{Name: "fact", Value: "found", Wanted: "needed"}))
		}
	}
	for _, d := range reasons {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		status := StatusOf(d.Reason)
		if err := (Answer{Decision: d, Status: status, App: &policy.App{Name: "crm", Title: "CRM"}}).Write(w, r); err != nil {
			t.Fatal(err)
		}
		body := w.Body.String()
		text := visible(t, body)
		for _, want := range []string{d.Message, strings.ReplaceAll(d.Remedy, "`", ""), d.ID, string(d.Reason), "CRM", "21 November 2026"} {
			if !strings.Contains(text, strings.Join(strings.Fields(want), " ")) {
				t.Errorf("%s: the page lacks %q:\n%s", d.Reason, want, text)
			}
		}
		if status < 400 || w.Code != status {
			t.Errorf("%s: status %d", d.Reason, w.Code)
		}
		if strings.Contains(body, "<script") || strings.Contains(body, "http://") || strings.Contains(body, "style=") {
			t.Errorf("%s: the page has what its policy forbids", d.Reason)
		}
	}
}

// visible is what a screen reader reads.
func visible(t *testing.T, page string) string {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	var walk func(*html.Node)
	walk = func(n *html.Node) {
		if n.Type == html.TextNode {
			b.WriteString(n.Data)
		}
		if n.Type == html.ElementNode && (n.Data == "style" || n.Data == "head") {
			return
		}
		for c := n.FirstChild; c != nil; c = c.NextSibling {
			walk(c)
		}
	}
	walk(doc)
	return strings.Join(strings.Fields(b.String()), " ")
}

// No language lacks a word, nor has one that the others lack.
func TestWordsAreWhole(t *testing.T) {
	if !slices.Equal(policy.Languages, page.Languages) {
		t.Errorf("the agent's pages are in %v, the gateway's in %v", page.Languages, policy.Languages)
	}
	for _, lang := range policy.Languages {
		for field, v := range reflect.ValueOf(words[lang]).Fields() {
			if v.IsZero() {
				t.Errorf("%s has no %s", lang, field.Name)
			}
		}
		for i, day := range words[lang].Days {
			if day == "" {
				t.Errorf("%s has no day %d", lang, i)
			}
		}
		for _, c := range []struct{ all, these map[string]string }{{words["en"].Facts, words[lang].Facts}, {words["en"].Values, words[lang].Values}} {
			for name := range c.all {
				if c.these[name] == "" {
					t.Errorf("%s has no word for %q", lang, name)
				}
			}
			if len(c.these) != len(c.all) {
				t.Errorf("%s has %d words, en %d", lang, len(c.these), len(c.all))
			}
		}
	}
}

// Facts are said in plain words where they are the gateway's own, and stay as
// they are where a custom module made them.
func TestFactsInPlainWords(t *testing.T) {
	for _, c := range []struct {
		lang string
		fact policy.Fact
		want [3]string
	}{
		{"en", policy.Fact{Name: "host_firewall", Value: "fail: ufw: off", Wanted: "pass"}, [3]string{"Firewall", "not in order (ufw: off)", "in order"}},
		{"sv", policy.Fact{Name: "disk_encryption", Value: "not reported", Wanted: "pass"}, [3]string{"Diskkryptering", "inte rapporterat", "i ordning"}},
		{"sv", policy.Fact{Name: "time", Value: "sat 22:41 Europe/Stockholm", Wanted: "mon, fri 07:00-18:00 Europe/Stockholm"}, [3]string{"Dag och tid", "lördag 22:41 Europe/Stockholm", "måndag, fredag 07:00-18:00 Europe/Stockholm"}},
		{"nl", policy.Fact{Name: "country", Value: "unknown", Wanted: "not RU, BY"}, [3]string{"Land waar u bent", "onbekend", "niet RU, BY"}},
		{"fi", policy.Fact{Name: "groups", Value: "none", Wanted: "one of payments, not sales"}, [3]string{"Ryhmäsi", "ei mitään", "jokin näistä: payments, not sales"}},
		{"en", policy.Fact{Name: "groups", Value: "not sales, sun", Wanted: "later than 2026-11-21T20:30:00Z"}, [3]string{"Your groups", "not sales, sun", "later than 2026-11-21T20:30:00Z"}},
		{"da", policy.Fact{Name: "session.expires_at", Value: "2026-11-21T20:29:13Z", Wanted: "later than 2026-11-21T20:30:00.5Z"}, [3]string{"Login gælder til", "2026-11-21 20:29:13 UTC", "senere end 2026-11-21 20:30:00 UTC"}},
		{"nb", policy.Fact{Name: "device", Value: "revoked 2026-11-21T20:29:13Z (stolen)", Wanted: "enrolled"}, [3]string{"Denne datamaskinen", "trukket tilbake 2026-11-21 20:29:13 UTC (stolen)", "registrert"}},
		{"sv", policy.Fact{Name: "all", Wanted: "lockdown lifted"}, [3]string{"Stängt", "allt", "öppnat igen"}},
		{"sv", policy.Fact{Name: "travel", Value: "", Wanted: "pass"}, [3]string{"travel", "inget", "pass"}},
		{"sv", policy.Fact{Name: "country", Value: "DE"}, [3]string{"Landet du är i", "DE", ""}},
	} {
		name, value, wanted := words[c.lang].fact(c.fact)
		if got := [3]string{name, value, wanted}; got != c.want {
			t.Errorf("%s %+v: %q, want %q", c.lang, c.fact, got, c.want)
		}
	}
}

// Names of the proxy's testdata/names.txt are text on the page and in the JSON: the page has
// the elements and attributes it always has, and nothing a screen would obey.
func TestNamesAreText(t *testing.T) {
	data, err := os.ReadFile("../proxy/testdata/names.txt")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(data), "\n\n")
	lines := strings.Split(strings.TrimSpace(list), "\n")
	if len(lines) < 60 {
		t.Errorf("%d names", len(lines))
	}
	write := func(name, accept string) string {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Accept", accept)
		d := decision(policy.ReasonPolicyDenied, &policy.Fact{Name: name, Value: name, Wanted: name})
		d.Message, d.Remedy = name, name
		if err := (Answer{Decision: d, Status: 403, App: &policy.App{Name: "crm", Title: name}}).Write(w, r); err != nil {
			t.Fatal(err)
		}
		return w.Body.String()
	}
	usual := skeleton(t, write("Anna", "text/html"))
	for _, line := range lines {
		name, err := strconv.Unquote(`"` + line + `"`)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		page, text := write(name, "text/html"), write(name, "application/json")
		if got := skeleton(t, page); got != usual {
			t.Errorf("%s: the page became\n%s", line, cmp.Diff(usual, got))
		}
		want := Plain(name)
		if !strings.Contains(visible(t, page), strings.Join(strings.Fields(want), " ")) {
			t.Errorf("%s is not on the page as text", line)
		}
		var got policy.Decision
		if err := json.Unmarshal([]byte(text), &got); err != nil || got.Message != want || got.Fact == nil || *got.Fact != (policy.Fact{Name: want, Value: want, Wanted: want}) {
			t.Errorf("%s: %v: %s", line, err, text)
		}
		if strings.ContainsAny(text, "<>&") || strings.Count(text, "\n") != 1 {
			t.Errorf("%s: the JSON is %s", line, text)
		}
		for _, r := range strings.ReplaceAll(page, "\n", "") + strings.TrimSuffix(text, "\n") {
			if r != '\u200c' && r != '\u200d' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
				t.Errorf("%s: %U stands unescaped", line, r)
			}
		}
	}
}

// skeleton is a page without its text: elements and the names of attributes.
func skeleton(t *testing.T, page string) string {
	t.Helper()
	var b strings.Builder
	for z := html.NewTokenizer(strings.NewReader(page)); ; {
		switch z.Next() {
		case html.ErrorToken:
			return b.String()
		case html.TextToken:
		default:
			token := z.Token()
			b.WriteString(token.Type.String() + " " + token.Data)
			for _, a := range token.Attr {
				b.WriteString(" " + a.Key)
			}
			b.WriteByte('\n')
		}
	}
}

func TestRefusalForm(t *testing.T) {
	d := decision(policy.ReasonGroupNotAllowed, &policy.Fact{Name: "groups", Value: "support", Wanted: "sales"})
	for _, c := range []struct {
		accept, dest string
		json         bool
	}{
		{"", "", false},
		{"*/*", "", false},
		{"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "document", false},
		{"application/json", "", true},
		{"application/json, text/plain, */*", "empty", true},
		{"text/html, application/json;q=0.9", "", false},
		{"text/html;q=0.5, application/json", "", true},
		{"application/vnd.api+json", "", true},
		{"*/*", "empty", true},
		{"*/*", "image", false},
		{"text/html, application/json", "", false},
		{"application/json;q=0", "", false},
		{"APPLICATION/JSON", "", true},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		if c.accept != "" {
			r.Header.Set("Accept", c.accept)
		}
		if c.dest != "" {
			r.Header.Set("Sec-Fetch-Dest", c.dest)
		}
		w := httptest.NewRecorder()
		w.Header().Set("Set-Cookie", "left=over")
		if err := (Answer{Decision: d, Status: 403, App: &policy.App{Name: "crm"}}).Write(w, r); err != nil {
			t.Fatal(err)
		}
		if got := w.Header().Get("Content-Type") == "application/json"; got != c.json {
			t.Errorf("Accept %q, Sec-Fetch-Dest %q: %s", c.accept, c.dest, w.Header().Get("Content-Type"))
		}
		if w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Set-Cookie") != "" || !strings.HasPrefix(w.Header().Get("Content-Security-Policy"), "default-src 'none'; style-src 'sha256-") {
			t.Errorf("headers %v", w.Header())
		}
		if c.json {
			var got policy.Decision
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || cmp.Diff(got, d) != "" {
				t.Errorf("%s: %v", w.Body, err)
			}
		}
	}
}

// The page speaks every language there is, and so does the JSON.
func TestRefusalInEveryLanguage(t *testing.T) {
	for _, lang := range policy.Languages {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Accept-Language", lang+", en;q=0.1")
		d := decision(policy.ReasonOutsideHours, &policy.Fact{Name: "time", Wanted: "08:00-17:00"})
		w := httptest.NewRecorder()
		if err := (Answer{Decision: d, Status: 403, App: &policy.App{Name: "crm"}}).Write(w, r); err != nil {
			t.Fatal(err)
		}
		said := policy.Reasons[d.Reason][lang]
		text := visible(t, w.Body.String())
		for _, want := range []string{said.Message, said.Remedy, words[lang].Refused, words[lang].Checked, words[lang].Facts["time"], words[lang].Values[""]} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: the page lacks %q:\n%s", lang, want, text)
			}
		}
		if !strings.Contains(w.Body.String(), `<html lang="`+lang+`">`) || w.Header().Get("Content-Language") != lang || !strings.Contains(w.Header().Get("Vary"), "Accept-Language") {
			t.Errorf("%s: headers %v", lang, w.Header())
		}
		r.Header.Set("Accept", "application/json")
		w = httptest.NewRecorder()
		if err := (Answer{Decision: d, Status: 403, App: &policy.App{Name: "crm"}}).Write(w, r); err != nil {
			t.Fatal(err)
		}
		var got policy.Decision
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Message != said.Message || got.Remedy != said.Remedy || got.Reason != d.Reason {
			t.Errorf("%s: %s: %v", lang, w.Body, err)
		}
	}
}
