package page

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
)

// A browser applies the style only when its hash is the one in the header.
func TestStyleMatchesThePolicy(t *testing.T) {
	var b strings.Builder
	if err := (Page{Lang: "en", Title: "Access refused"}).Write(&b); err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(b.String(), "<style>")
	style, _, ok := strings.Cut(rest, "</style>")
	h := http.Header{}
	Headers(h, "en")
	sum := sha256.Sum256([]byte(style))
	if want := "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; !ok || !strings.Contains(h.Get("Content-Security-Policy"), want) {
		t.Errorf("the header has %s, the style is %s", h.Get("Content-Security-Policy"), want)
	}
}

func TestProseMarksCommands(t *testing.T) {
	for text, want := range map[string]string{
		"Log in with: portvakt-agent login":                       "Log in with: [portvakt-agent login]",
		"Log in again with: portvakt-agent login. If not, ask.":   "Log in again with: [portvakt-agent login]. If not, ask.",
		"Check that portvakt-agent is running; it reports often.": "Check that [portvakt-agent] is running; it reports often.",
		"Name it under `allow`, or with `portvakt-agent apps`.":   "Name it under [allow], or with [portvakt-agent apps].",
		"One ` alone.":     "One ` alone.",
		"Nothing to type.": "Nothing to type.",
	} {
		var b strings.Builder
		for _, p := range prose(text) {
			if p.Code {
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
