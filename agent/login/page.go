package login

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"html/template"
	"net/http"

	"github.com/portvakt/portvakt/agent/control"
	"github.com/portvakt/portvakt/internal/wire"
)

type page struct {
	Title, Text, Remedy, Code string
	Good                      bool
	Lang                      string // of languages
}

const pageStyle = `
body{font:1.1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:15vh auto 0;padding:0 1.5rem;color:#1b1f24;background:#fff}
h1{font-size:1.5rem;border-left:.4rem solid #b3261e;padding-left:.8rem}
h1.good{border-color:#1a7f37}
p.code{color:#57606a;font-size:.9rem}
@media (prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}p.code{color:#8b949e}}
`

// Cause is the word before Code.
func (p page) Cause() string { return languages[p.Lang].Cause }

// The page runs nothing and loads nothing; its one style is named by its hash.
var pagePolicy = func() string {
	sum := sha256.Sum256([]byte(pageStyle))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"
}()

var pageTemplate = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="{{.Lang}}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Portvakt: {{.Title}}</title>
<style>` + pageStyle + `</style></head>
<body><main><h1{{if .Good}} class="good"{{end}}>{{.Title}}</h1><p>{{.Text}}</p>
{{with .Remedy}}<p>{{.}}</p>{{end}}{{with .Code}}<p class="code">{{$.Cause}}: {{.}}</p>{{end}}
</main></body></html>
`))

// failure says why a login was refused, in the gateway's words.
func failure(err error, lang string) page {
	say := languages[lang]
	var refused *wire.Error
	if errors.As(err, &refused) {
		p := page{Lang: lang, Title: say.NotLoggedIn, Text: refused.Message, Remedy: refused.Remedy, Code: refused.Code}
		if p.Text == "" {
			p.Text = say.Refused
		}
		return p
	}
	// The command that began the login says more, for whoever mends it.
	return page{Lang: lang, Title: say.NotLoggedIn, Text: say.Lost, Remedy: say.Again, Code: control.Diagnose(err).Code}
}

func writePage(w http.ResponseWriter, status int, p page) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer") // the address of this page holds the code
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Connection", "close")
	w.WriteHeader(status)
	pageTemplate.Execute(w, p) // an error here means that the browser is gone
}
