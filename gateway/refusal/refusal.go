// Package refusal answers a request that goes no further: a page for people,
// JSON for programs, in the language the browser asks for. Its words come from
// the Decision alone, so that a new Reason needs nothing here.
package refusal

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/portvakt/portvakt/internal/page"
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

// Answer is what is said, and how.
type Answer struct {
	Decision policy.Decision
	Status   int
	App      *policy.App
	Close    bool     // the connection, after it
	Allow    []string // the methods there are, with [http.StatusMethodNotAllowed]
}

// page is what people see of an Answer.
func (a Answer) page(lang string) page.Page {
	say, d := words[lang], shown(a.Decision.In(lang))
	p := page.Page{
		Lang: lang, Over: Plain(cmp.Or(a.App.Title, a.App.Name)), Title: say.Fault, Text: d.Message,
		Remedy: d.Remedy, RemedyTitle: say.Remedy, FoundTitle: say.Found, Link: &page.Link{Label: say.Again},
	}
	// The title says whose turn it is: a refusal is the policy's, the rest are
	// faults.
	switch {
	case a.Status >= 500:
		p.Title = say.Down
	case a.Status == http.StatusForbidden:
		p.Title = say.Refused
	}
	switch d.Reason {
	case policy.ReasonMisdirected:
		p.Link = nil // this address has nothing of the app
	case policy.ReasonBadRequest, policy.ReasonCrossSite, policy.ReasonMethodNotAllowed, policy.ReasonPathNotAllowed:
		p.Link = &page.Link{Label: say.Home, Target: "/"} // this very request will not do
	}
	if f := d.Fact; f != nil {
		name, value, wanted := say.fact(*f)
		foreign := ""
		if say.Facts[f.Name] == "" && d.Reason != policy.ReasonPolicyDenied {
			foreign = policy.Languages[0] // the gateway's own, for IT support
		}
		p.Found = []page.Row{{Label: say.Checked, Text: name, Lang: foreign}, {Label: say.Is, Text: value, Wrong: true}}
		if wanted != "" {
			p.Found = append(p.Found, page.Row{Label: say.Needed, Text: wanted, Lang: foreign})
		}
	}
	if d.ID != "" {
		p.Trace = append(p.Trace, page.Row{Label: say.Decision, Text: d.ID, Code: true})
	}
	at := d.Time.UTC()
	p.Trace = append(p.Trace, page.Row{Label: say.Reason, Text: string(d.Reason), Code: true}, page.Row{Label: say.Time, Text: at.Format(say.Stamp), Time: at.Format(time.RFC3339)})
	return p
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
	h.Set("Vary", "Accept, Accept-Language, Sec-Fetch-Dest")
	lang := policy.Language(strings.Join(r.Header["Accept-Language"], ","))
	page.Headers(h, lang)
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
	} else if err := a.page(lang).Write(&body); err != nil {
		return fmt.Errorf("rendering a refusal: %w", err)
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
	if strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) < 0 {
		return s // as every part of nearly every request
	}
	return strings.Map(func(r rune) rune {
		if r != '\u200c' && r != '\u200d' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			return utf8.RuneError
		}
		return r
	}, s)
}
