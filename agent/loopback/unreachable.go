package loopback

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/portvakt/portvakt/internal/page"
	"github.com/portvakt/portvakt/internal/wire"
)

// words are what the browser shows when an app is not reached.
type words struct {
	Title                   string
	Refused, Why            string // Why takes the app's name
	Silent, Offline, Status string
	ToDo, Again             string
}

// languages has an entry for each of page.Languages.
var languages = map[string]words{
	"en": {
		Title:   "This app cannot be reached now",
		Refused: "The gateway refused the connection.", Why: "See why with `portvakt-agent why %s`",
		Silent: "The gateway did not answer in time.", Status: "See how the connection is with `portvakt-agent status`. It comes back by itself; if it does not, ask your IT support.",
		Offline: "This laptop is not connected to the gateway.",
		ToDo:    "What you can do", Again: "Try again",
	},
	"sv": {
		Title:   "Appen kan inte nås just nu",
		Refused: "Gatewayen nekade anslutningen.", Why: "Se varför med `portvakt-agent why %s`",
		Silent: "Gatewayen svarade inte i tid.", Status: "Se hur det är med anslutningen med `portvakt-agent status`. Den kommer tillbaka av sig själv; om den inte gör det, fråga din IT-support.",
		Offline: "Datorn är inte ansluten till gatewayen.",
		ToDo:    "Vad du kan göra", Again: "Försök igen",
	},
	"nb": {
		Title:   "Appen kan ikke nås akkurat nå",
		Refused: "Gatewayen avviste tilkoblingen.", Why: "Se hvorfor med `portvakt-agent why %s`",
		Silent: "Gatewayen svarte ikke i tide.", Status: "Se hvordan det står til med tilkoblingen med `portvakt-agent status`. Den kommer tilbake av seg selv; hvis den ikke gjør det, spør IT-støtten din.",
		Offline: "Datamaskinen er ikke koblet til gatewayen.",
		ToDo:    "Hva du kan gjøre", Again: "Prøv igjen",
	},
	"da": {
		Title:   "Appen kan ikke nås lige nu",
		Refused: "Gatewayen afviste forbindelsen.", Why: "Se hvorfor med `portvakt-agent why %s`",
		Silent: "Gatewayen svarede ikke i tide.", Status: "Se, hvordan det står til med forbindelsen, med `portvakt-agent status`. Den kommer igen af sig selv; hvis den ikke gør det, så spørg din IT-support.",
		Offline: "Computeren er ikke forbundet med gatewayen.",
		ToDo:    "Hvad du kan gøre", Again: "Prøv igen",
	},
	"fi": {
		Title:   "Sovellukseen ei juuri nyt saada yhteyttä",
		Refused: "Yhdyskäytävä eväsi yhteyden.", Why: "Katso syy komennolla `portvakt-agent why %s`",
		Silent: "Yhdyskäytävä ei vastannut ajoissa.", Status: "Katso yhteyden tila komennolla `portvakt-agent status`. Yhteys palautuu itsestään; jos ei palaudu, kysy IT-tuestasi.",
		Offline: "Tietokone ei ole yhteydessä yhdyskäytävään.",
		ToDo:    "Mitä voit tehdä", Again: "Yritä uudelleen",
	},
	"nl": {
		Title:   "Deze app is nu niet bereikbaar",
		Refused: "De gateway heeft de verbinding geweigerd.", Why: "Bekijk waarom met `portvakt-agent why %s`",
		Silent: "De gateway antwoordde niet op tijd.", Status: "Bekijk de stand van de verbinding met `portvakt-agent status`. Ze komt vanzelf terug; gebeurt dat niet, vraag het dan aan uw IT-ondersteuning.",
		Offline: "Deze laptop is niet met de gateway verbonden.",
		ToDo:    "Wat u kunt doen", Again: "Probeer het opnieuw",
	},
}

// unreachable answers for an app that was not reached: a page to a browser, a
// line to other programs. Of the answers to CONNECT browsers show none.
func unreachable(w http.ResponseWriter, r *http.Request, app string, err error) {
	var offline *wire.Error // the tunnel is not there
	if !strings.Contains(strings.Join(r.Header["Accept"], ","), "text/html") {
		text := "The gateway refused the connection to %[1]s. The reason: portvakt-agent why %[1]s"
		switch {
		case errors.As(err, &offline):
			refuse(w, http.StatusBadGateway, strings.TrimSpace(offline.Message+" "+offline.Remedy))
			return
		case timedOut(err):
			text = "The gateway did not answer for %[1]s in time. Whether the tunnel is up: portvakt-agent status"
		}
		refuse(w, http.StatusBadGateway, fmt.Sprintf(text, app))
		return
	}
	lang := page.Language(strings.Join(r.Header["Accept-Language"], ","))
	say := languages[lang]
	p := page.Page{Lang: lang, Over: app, Title: say.Title, RemedyTitle: say.ToDo, Link: &page.Link{Label: say.Again}}
	switch {
	case errors.As(err, &offline) && offline.Denial != nil:
		p.Text, p.Remedy = offline.Message, offline.Remedy // the gateway's words, in the agent's language
	case offline != nil:
		p.Text, p.Remedy = say.Offline, say.Status
	case timedOut(err):
		p.Text, p.Remedy = say.Silent, say.Status
	default:
		p.Text, p.Remedy = say.Refused, fmt.Sprintf(say.Why, app)
	}
	var body bytes.Buffer
	if err := p.Write(&body); err != nil {
		http.Error(w, "", http.StatusInternalServerError)
		return
	}
	page.Headers(w.Header(), lang)
	w.Header().Set("Vary", "Accept, Accept-Language")
	w.Header().Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(http.StatusBadGateway)
	w.Write(body.Bytes()) // an error here means that the browser is gone
}
