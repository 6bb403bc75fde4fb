package login

import (
	"bytes"
	"errors"
	"net/http"
	"strconv"

	"github.com/portvakt/portvakt/agent/control"
	"github.com/portvakt/portvakt/internal/page"
	"github.com/portvakt/portvakt/internal/wire"
)

// answer is a page of this listener: what it says, in a language of languages.
func answer(lang, title, text, remedy, code string) page.Page {
	say := languages[lang]
	p := page.Page{Lang: lang, Over: "Portvakt", Title: title, Text: text, Remedy: remedy, RemedyTitle: say.Remedy}
	if code != "" {
		p.Trace = []page.Row{{Label: say.Cause, Text: code, Code: true}}
	}
	return p
}

// failure says why a login was refused, in the gateway's words.
func failure(err error, lang string) page.Page {
	say := languages[lang]
	var refused *wire.Error
	if errors.As(err, &refused) {
		text := refused.Message
		if text == "" {
			text = say.Refused
		}
		return answer(lang, say.NotLoggedIn, text, refused.Remedy, refused.Code)
	}
	// The command that began the login says more, for whoever mends it.
	return answer(lang, say.NotLoggedIn, say.Lost, say.Again, control.Diagnose(err).Code)
}

func writePage(w http.ResponseWriter, status int, p page.Page) {
	var body bytes.Buffer
	if err := p.Write(&body); err != nil {
		http.Error(w, "", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	page.Headers(h, p.Lang) // no-referrer above all: the address of this page holds the code
	h.Set("Content-Security-Policy", h.Get("Content-Security-Policy")+"; sandbox")
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	h.Set("Connection", "close")
	w.WriteHeader(status)
	w.Write(body.Bytes()) // an error here means that the browser is gone
}
