// Package refusal answers a request that goes no further: a page for people,
// JSON for programs, in the language the browser asks for. Its words come from
// the Decision alone, so that a new Reason needs nothing here.
package refusal

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/portvakt/portvakt/policy"
)

// Headers of a refusal, so that a program need not read the page. Responses of
// apps never carry them.
const (
	headerReason   = "Portvakt-Reason"
	headerDecision = "Portvakt-Decision"
)

// statuses are the Reasons that are not the caller's lack of a right. Every
// other Reason, also one that does not exist yet, is 403.
var statuses = map[policy.Reason]int{
	policy.ReasonBadRequest:          http.StatusBadRequest,
	policy.ReasonMisdirected:         http.StatusMisdirectedRequest,
	policy.ReasonAuditUnavailable:    http.StatusServiceUnavailable,
	policy.ReasonUpstreamUnavailable: http.StatusBadGateway,
	policy.ReasonUpstreamForbidden:   http.StatusBadGateway,
}

// StatusOf is the HTTP status that a Reason is answered with.
func StatusOf(r policy.Reason) int {
	if s, ok := statuses[r]; ok {
		return s
	}
	return http.StatusForbidden
}

//go:embed page.css
var pageCSS string

//go:embed page.html
var pageHTML string

var page = template.Must(template.New("page").Funcs(template.FuncMap{"prose": prose}).Parse(pageHTML))

var pagePolicy = func() string {
	sum := sha256.Sum256([]byte(pageCSS))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}()

// Answer is what is said, and how.
type Answer struct {
	Decision policy.Decision
	Status   int
	App      *policy.App
	Close    bool     // the connection, after it
	Allow    []string // the methods there are, with [http.StatusMethodNotAllowed]
}

// view is what the page shows.
type view struct {
	policy.Decision
	Status int
	Title  string // of the app
	Lang   string // one of policy.Languages
	CSS    template.CSS
}

func (v view) Words() labels { return words[v.Lang] }

func (v view) When() string    { return v.Time.UTC().Format(v.Words().Stamp) }
func (v view) Machine() string { return v.Time.UTC().Format(time.RFC3339) }

// Heading says whose turn it is: a refusal is the policy's, the rest are
// faults.
func (v view) Heading() string {
	switch {
	case v.Status >= 500:
		return v.Words().Down
	case v.Status == http.StatusForbidden:
		return v.Words().Refused
	}
	return v.Words().Fault
}

// command finds the commands that remedies name, so that they can be shown as
// something to type.
var command = regexp.MustCompile(`portvakt-agent(?: [a-z][a-z-]*)?(?:\b|$)`)

type piece struct {
	Text    string
	Command bool
}

func prose(s string) []piece {
	m := command.FindStringIndex(s)
	if m == nil {
		return []piece{{Text: s}}
	}
	// "portvakt-agent is running" names the program, not a command.
	if before := s[:m[0]]; !strings.HasSuffix(before, ": ") && !strings.HasSuffix(before, "`") {
		m[1] = m[0] + len("portvakt-agent")
	}
	return append([]piece{{Text: s[:m[0]]}, {Text: s[m[0]:m[1]], Command: true}}, prose(s[m[1]:])...)
}

func renderPage(w io.Writer, lang string, status int, title string, d policy.Decision) error {
	return page.Execute(w, view{Decision: shown(d.In(lang)), Status: status, Title: Plain(title), Lang: lang, CSS: template.CSS(pageCSS)})
}

// shown makes what a Decision quotes of others safe to look at. The record has
// it as it was.
func shown(d policy.Decision) policy.Decision {
	d.Message, d.Remedy = Plain(d.Message), Plain(d.Remedy)
	if f := d.Fact; f != nil {
		d.Fact = &policy.Fact{Name: Plain(f.Name), Value: Plain(f.Value), Wanted: Plain(f.Wanted)}
	}
	return d
}

// Write answers r.
func (a Answer) Write(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	clear(h)
	if a.Close {
		h.Set("Connection", "close")
	}
	h.Set("Cache-Control", "no-store")
	h.Set("Vary", "Accept, Accept-Language, Sec-Fetch-Dest")
	lang := policy.Language(strings.Join(r.Header["Accept-Language"], ","))
	h.Set("Content-Language", lang)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set(headerReason, string(a.Decision.Reason))
	if a.Decision.ID != "" {
		h.Set(headerDecision, a.Decision.ID)
	}
	switch a.Status {
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", "5")
	case http.StatusMethodNotAllowed:
		h.Set("Allow", strings.Join(a.Allow, ", "))
	}
	var body bytes.Buffer
	if prefersJSON(r) {
		h.Set("Content-Type", "application/json")
		enc := json.NewEncoder(&body)
		enc.SetEscapeHTML(true)
		if err := enc.Encode(shown(a.Decision.In(lang))); err != nil {
			return fmt.Errorf("encoding a refusal: %w", err)
		}
	} else {
		h.Set("Content-Type", "text/html; charset=utf-8")
		title := a.App.Title
		if title == "" {
			title = a.App.Name
		}
		if err := renderPage(&body, lang, a.Status, title, a.Decision); err != nil {
			return fmt.Errorf("rendering a refusal: %w", err)
		}
	}
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(a.Status)
	if r.Method == http.MethodHead {
		return nil
	}
	_, err := w.Write(body.Bytes())
	return err
}

// prefersJSON reads Accept (RFC 9110, 12.5.1). A tie goes to the page, but for
// a script's fetch, which shows no page to anyone.
func prefersJSON(r *http.Request) bool {
	var jsonQ, htmlQ, anyQ float64
	for _, line := range r.Header["Accept"] {
		for part := range strings.SplitSeq(line, ",") {
			media, params, _ := strings.Cut(part, ";")
			q := 1.0
			for p := range strings.SplitSeq(params, ";") {
				if v, ok := strings.CutPrefix(strings.TrimSpace(p), "q="); ok {
					if f, err := strconv.ParseFloat(v, 64); err == nil && f >= 0 && f <= 1 {
						q = f
					}
				}
			}
			switch media = strings.ToLower(strings.TrimSpace(media)); {
			case media == "application/json" || media == "application/*" || strings.HasSuffix(media, "+json"):
				jsonQ = max(jsonQ, q)
			case media == "text/html" || media == "text/*" || media == "application/xhtml+xml":
				htmlQ = max(htmlQ, q)
			case media == "*/*":
				anyQ = max(anyQ, q)
			}
		}
	}
	if jsonQ == htmlQ {
		return r.Header.Get("Sec-Fetch-Dest") == "empty" && (jsonQ > 0 || anyQ > 0)
	}
	return jsonQ > htmlQ
}

// Plain puts U+FFFD for what a screen would obey or not show. Joiners stay:
// names of some languages need them.
func Plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\u200c' && r != '\u200d' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			return utf8.RuneError
		}
		return r
	}, s)
}
