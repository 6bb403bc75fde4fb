package proxy

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

func statusOf(r policy.Reason) int {
	if s, ok := statuses[r]; ok {
		return s
	}
	return http.StatusForbidden
}

//go:embed refusal.css
var refusalCSS string

//go:embed refusal.html
var refusalHTML string

var refusalPage = template.Must(template.New("refusal").Funcs(template.FuncMap{"prose": prose}).Parse(refusalHTML))

var refusalCSP = func() string {
	sum := sha256.Sum256([]byte(refusalCSS))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}()

// refusal is what the page shows. Its words come from the Decision alone, so
// that a new Reason needs nothing here.
type refusal struct {
	policy.Decision
	Status int
	Title  string // of the app
	Lang   string // one of policy.Languages
	CSS    template.CSS
}

func (r refusal) Words() labels { return words[r.Lang] }

func (r refusal) When() string    { return r.Time.UTC().Format(r.Words().Stamp) }
func (r refusal) Machine() string { return r.Time.UTC().Format(time.RFC3339) }

// Heading says whose turn it is: a refusal is the policy's, the rest are
// faults.
func (r refusal) Heading() string {
	switch {
	case r.Status >= 500:
		return r.Words().Down
	case r.Status == http.StatusForbidden:
		return r.Words().Refused
	}
	return r.Words().Fault
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
	return refusalPage.Execute(w, refusal{Decision: shown(d.In(lang)), Status: status, Title: plainText(title), Lang: lang, CSS: template.CSS(refusalCSS)})
}

// shown makes what a Decision quotes of others safe to look at. The record has
// it as it was.
func shown(d policy.Decision) policy.Decision {
	d.Message, d.Remedy = plainText(d.Message), plainText(d.Remedy)
	if f := d.Fact; f != nil {
		d.Fact = &policy.Fact{Name: plainText(f.Name), Value: plainText(f.Value), Wanted: plainText(f.Wanted)}
	}
	return d
}

// writeRefusal answers a request that goes no further, in the language the
// browser asks for.
func writeRefusal(w http.ResponseWriter, r *http.Request, status int, app *policy.App, d policy.Decision, closing bool) error {
	h := w.Header()
	clear(h)
	if closing {
		h.Set("Connection", "close")
	}
	h.Set("Cache-Control", "no-store")
	h.Set("Vary", "Accept, Accept-Language, Sec-Fetch-Dest")
	lang := policy.Language(strings.Join(r.Header["Accept-Language"], ","))
	h.Set("Content-Language", lang)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Security-Policy", refusalCSP)
	h.Set(headerReason, string(d.Reason))
	if d.ID != "" {
		h.Set(headerDecision, d.ID)
	}
	switch status {
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", "5")
	case http.StatusMethodNotAllowed:
		h.Set("Allow", strings.Join(methods, ", "))
	}
	var body bytes.Buffer
	if prefersJSON(r) {
		h.Set("Content-Type", "application/json")
		enc := json.NewEncoder(&body)
		enc.SetEscapeHTML(true)
		if err := enc.Encode(shown(d.In(lang))); err != nil {
			return fmt.Errorf("encoding a refusal: %w", err)
		}
	} else {
		h.Set("Content-Type", "text/html; charset=utf-8")
		title := app.Title
		if title == "" {
			title = app.Name
		}
		if err := renderPage(&body, lang, status, title, d); err != nil {
			return fmt.Errorf("rendering a refusal: %w", err)
		}
	}
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(status)
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
