package refusal

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/html"

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
		var got bytes.Buffer
		lang := "en"
		if _, l, ok := strings.Cut(name, "."); ok {
			lang = l
		}
		if err := renderPage(&got, lang, StatusOf(d.Reason), "Customer register", d); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", name+".html")
		if *update {
			if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), got.String()); d != "" {
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
		for _, want := range []string{d.Message, d.Remedy, d.ID, string(d.Reason), "CRM", "21 November 2026"} {
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

// A browser applies the style only when its hash is the one in the header.
func TestPageStyleMatchesItsPolicy(t *testing.T) {
	w := httptest.NewRecorder()
	if err := (Answer{Decision: decision(policy.ReasonLoginRequired, nil), Status: 403, App: &policy.App{Name: "crm"}}).Write(w, httptest.NewRequest(http.MethodGet, "/", nil)); err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(w.Body.String(), "<style>")
	style, _, ok := strings.Cut(rest, "</style>")
	sum := sha256.Sum256([]byte(style))
	if want := "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; !ok || !strings.Contains(w.Header().Get("Content-Security-Policy"), want) {
		t.Errorf("the header has %s, the style is %s", w.Header().Get("Content-Security-Policy"), want)
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
	empty := labels{}
	for _, lang := range policy.Languages {
		if words[lang] == empty {
			t.Fatalf("no words in %s", lang)
		}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Accept-Language", lang+", en;q=0.1")
		d := decision(policy.ReasonOutsideHours, &policy.Fact{Name: "time", Wanted: "08:00-17:00"})
		w := httptest.NewRecorder()
		if err := (Answer{Decision: d, Status: 403, App: &policy.App{Name: "crm"}}).Write(w, r); err != nil {
			t.Fatal(err)
		}
		said := policy.Reasons[d.Reason][lang]
		text := visible(t, w.Body.String())
		for _, want := range []string{said.Message, said.Remedy, words[lang].Refused, words[lang].Checked, words[lang].Nothing} {
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

func TestProseMarksCommands(t *testing.T) {
	for text, want := range map[string]string{
		"Log in with: portvakt-agent login":                       "Log in with: [portvakt-agent login]",
		"Log in again with: portvakt-agent login. If not, ask.":   "Log in again with: [portvakt-agent login]. If not, ask.",
		"Check that portvakt-agent is running; it reports often.": "Check that [portvakt-agent] is running; it reports often.",
		"Nothing to type.": "Nothing to type.",
	} {
		var b strings.Builder
		for _, p := range prose(text) {
			if p.Command {
				b.WriteString("[" + p.Text + "]")
			} else {
				b.WriteString(p.Text)
			}
		}
		if b.String() != want {
			t.Errorf("%q became %q", text, b.String())
		}
	}
}
