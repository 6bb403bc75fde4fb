// Package page is how a page looks that a person meets in the browser because
// something does not go on, or is done: the same from the gateway and from the
// agent. It runs nothing and loads nothing. What it says is the caller's, in
// the person's language.
package page

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// Page is one page. Its order is the reader's: what happened, what to do, then
// what was found, and last what IT support asks for.
type Page struct {
	Lang        string // BCP 47
	Over        string // what it is about, above the title; may be empty
	Title, Text string
	Good        bool // it is no fault
	Remedy      string
	RemedyTitle string
	Link        *Link
	FoundTitle  string
	Found       []Row
	Trace       []Row
}

// Link is where the person can go on.
type Link struct {
	Label  string
	Target template.URL // relative
}

// Row is one fact with its name.
type Row struct {
	Label, Text string
	Wrong       bool   // this is what is in the way
	Code        bool   // to be copied: one click selects it
	Lang        string // of Text, when it is not the page's
	Time        string // Text for a machine, when it is a time (RFC 3339)
}

//go:embed page.css
var style string

//go:embed page.html
var markup string

var pages = template.Must(template.New("page").Funcs(template.FuncMap{"prose": prose}).Parse(markup))

// policy names the one style by its hash and allows nothing else.
var policy = func() string {
	sum := sha256.Sum256([]byte(style))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}()

// Headers sets what every such page is sent with.
func Headers(h http.Header, lang string) {
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Language", lang)
	h.Set("Content-Security-Policy", policy)
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
}

// Write writes the page itself.
func (p Page) Write(w io.Writer) error {
	return pages.ExecuteTemplate(w, "page", struct {
		Page
		CSS template.CSS
	}{p, template.CSS(style)})
}

// code finds what is typed as it stands: what is in backticks, and the agent's
// commands.
var code = regexp.MustCompile("`[^`]+`|portvakt-agent(?: [a-z][a-z-]*)?(?:\\b|$)")

type piece struct {
	Text string
	Code bool
}

func prose(s string) []piece {
	m := code.FindStringIndex(s)
	if m == nil {
		return []piece{{Text: s}}
	}
	found := s[m[0]:m[1]]
	// "portvakt-agent is running" names the program, not a command.
	if name := "portvakt-agent"; strings.HasPrefix(found, name) && !strings.HasSuffix(s[:m[0]], ": ") {
		found = name
		m[1] = m[0] + len(name)
	}
	return append([]piece{{Text: s[:m[0]]}, {Text: strings.Trim(found, "`"), Code: true}}, prose(s[m[1]:])...)
}

// Languages are those a page can be in. They are policy.Languages, which the
// agent does not hold.
var Languages = []string{"en", "sv", "nb", "da", "fi", "nl"}

// Language picks the first of [Languages] in an Accept-Language, in the order
// it is written in; English when there is none.
func Language(accept string) string {
	for tag := range strings.SplitSeq(accept, ",") {
		tag, _, _ = strings.Cut(strings.TrimSpace(tag), ";")
		base, _, _ := strings.Cut(strings.ToLower(tag), "-")
		if base == "no" || base == "nn" {
			base = "nb" // as the gateway does
		}
		if slices.Contains(Languages, base) {
			return base
		}
	}
	return Languages[0]
}
