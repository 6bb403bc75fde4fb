package login

import "strings"

// words are what this package says to the person in the browser at a login's
// end. What the gateway says of a refusal comes from the gateway, in the same
// language where it has it.
type words struct {
	LoggedIn, Close, Welcome  string // Welcome takes a name
	NotLoggedIn, Again, Cause string
}

var languages = map[string]words{
	"en": {
		"You are logged in", "You can close this window and open your apps.", "Welcome, %s.",
		"You are not logged in", "Start again with: portvakt-agent login", "Reason",
	},
	"sv": {
		"Du är inloggad", "Du kan stänga fönstret och öppna dina appar.", "Välkommen, %s.",
		"Du är inte inloggad", "Börja om med: portvakt-agent login", "Orsak",
	},
	"nb": {
		"Du er logget inn", "Du kan lukke vinduet og åpne appene dine.", "Velkommen, %s.",
		"Du er ikke logget inn", "Begynn på nytt med: portvakt-agent login", "Årsak",
	},
	"da": {
		"Du er logget ind", "Du kan lukke vinduet og åbne dine apps.", "Velkommen, %s.",
		"Du er ikke logget ind", "Begynd forfra med: portvakt-agent login", "Årsag",
	},
	"fi": {
		"Olet kirjautunut sisään", "Voit sulkea tämän ikkunan ja avata sovelluksesi.", "Tervetuloa, %s.",
		"Et ole kirjautunut sisään", "Aloita uudelleen komennolla: portvakt-agent login", "Syy",
	},
	"nl": {
		"U bent ingelogd", "U kunt dit venster sluiten en uw apps openen.", "Welkom, %s.",
		"U bent niet ingelogd", "Begin opnieuw met: portvakt-agent login", "Reden",
	},
}

// languageOf picks the first language of an Accept-Language that there is, in
// the order it is written in; English when there is none.
func languageOf(accept string) string {
	for tag := range strings.SplitSeq(accept, ",") {
		tag, _, _ = strings.Cut(strings.TrimSpace(tag), ";")
		base, _, _ := strings.Cut(strings.ToLower(tag), "-")
		if base == "no" || base == "nn" {
			base = "nb" // as the gateway does
		}
		if _, ok := languages[base]; ok {
			return base
		}
	}
	return "en"
}
