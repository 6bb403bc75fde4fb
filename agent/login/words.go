package login

import "strings"

// words are what this package says to the person in the browser. What the
// gateway says of a refusal comes from the gateway, in the same language where
// it has it.
type words struct {
	LoggedIn, Close, Welcome                 string // Welcome takes a name
	NotLoggedIn, Lost, Refused, Again, Cause string
	Remedy                                   string
	NotHere, UnderWay, Back                  string
	NotTheAnswer, Misread                    string
	Used, Once, Unless                       string
}

var languages = map[string]words{
	"en": {
		LoggedIn:     "You are logged in",
		Close:        "You can close this window and open your apps.",
		Welcome:      "Welcome, %s.",
		NotLoggedIn:  "You are not logged in",
		Lost:         "The gateway could not be reached, so the login did not come to its end.",
		Refused:      "The gateway refused the login.",
		Again:        "Start again with: portvakt-agent login",
		Cause:        "Reason",
		Remedy:       "What you can do",
		NotHere:      "Nothing to see here",
		UnderWay:     "This address belongs to a login that is under way on this laptop.",
		Back:         "Go back to the page of your login.",
		NotTheAnswer: "This is not the answer to your login",
		Misread:      "What came back from the login page could not be used.",
		Used:         "This link has been used",
		Once:         "The link of a login works once.",
		Unless:       "If you are not logged in, start again with: portvakt-agent login",
	},
	"sv": {
		LoggedIn:     "Du är inloggad",
		Close:        "Du kan stänga fönstret och öppna dina appar.",
		Welcome:      "Välkommen, %s.",
		NotLoggedIn:  "Du är inte inloggad",
		Lost:         "Gatewayen gick inte att nå, så inloggningen blev inte klar.",
		Refused:      "Gatewayen nekade inloggningen.",
		Again:        "Börja om med: portvakt-agent login",
		Cause:        "Orsak",
		Remedy:       "Vad du kan göra",
		NotHere:      "Här finns inget att se",
		UnderWay:     "Adressen hör till en inloggning som pågår på den här datorn.",
		Back:         "Gå tillbaka till sidan där du loggar in.",
		NotTheAnswer: "Det här är inte svaret på din inloggning",
		Misread:      "Det som kom tillbaka från inloggningssidan gick inte att använda.",
		Used:         "Länken är redan använd",
		Once:         "En inloggningslänk fungerar en gång.",
		Unless:       "Om du inte är inloggad, börja om med: portvakt-agent login",
	},
	"nb": {
		LoggedIn:     "Du er logget inn",
		Close:        "Du kan lukke vinduet og åpne appene dine.",
		Welcome:      "Velkommen, %s.",
		NotLoggedIn:  "Du er ikke logget inn",
		Lost:         "Gatewayen kunne ikke nås, så innloggingen ble ikke fullført.",
		Refused:      "Gatewayen avviste innloggingen.",
		Again:        "Begynn på nytt med: portvakt-agent login",
		Cause:        "Årsak",
		Remedy:       "Hva du kan gjøre",
		NotHere:      "Her er det ingenting å se",
		UnderWay:     "Adressen hører til en innlogging som pågår på denne datamaskinen.",
		Back:         "Gå tilbake til siden der du logger inn.",
		NotTheAnswer: "Dette er ikke svaret på innloggingen din",
		Misread:      "Det som kom tilbake fra innloggingssiden, kunne ikke brukes.",
		Used:         "Lenken er allerede brukt",
		Once:         "En innloggingslenke virker én gang.",
		Unless:       "Hvis du ikke er logget inn, begynn på nytt med: portvakt-agent login",
	},
	"da": {
		LoggedIn:     "Du er logget ind",
		Close:        "Du kan lukke vinduet og åbne dine apps.",
		Welcome:      "Velkommen, %s.",
		NotLoggedIn:  "Du er ikke logget ind",
		Lost:         "Gatewayen kunne ikke nås, så dit login blev ikke færdigt.",
		Refused:      "Gatewayen afviste dit login.",
		Again:        "Begynd forfra med: portvakt-agent login",
		Cause:        "Årsag",
		Remedy:       "Hvad du kan gøre",
		NotHere:      "Her er intet at se",
		UnderWay:     "Adressen hører til et login, der er i gang på denne computer.",
		Back:         "Gå tilbage til siden, hvor du logger ind.",
		NotTheAnswer: "Dette er ikke svaret på dit login",
		Misread:      "Det, der kom tilbage fra loginsiden, kunne ikke bruges.",
		Used:         "Linket er allerede brugt",
		Once:         "Et loginlink virker én gang.",
		Unless:       "Hvis du ikke er logget ind, så begynd forfra med: portvakt-agent login",
	},
	"fi": {
		LoggedIn:     "Olet kirjautunut sisään",
		Close:        "Voit sulkea tämän ikkunan ja avata sovelluksesi.",
		Welcome:      "Tervetuloa, %s.",
		NotLoggedIn:  "Et ole kirjautunut sisään",
		Lost:         "Yhdyskäytävään ei saatu yhteyttä, joten kirjautuminen jäi kesken.",
		Refused:      "Yhdyskäytävä eväsi kirjautumisen.",
		Again:        "Aloita uudelleen komennolla: portvakt-agent login",
		Cause:        "Syy",
		Remedy:       "Mitä voit tehdä",
		NotHere:      "Täällä ei ole mitään nähtävää",
		UnderWay:     "Osoite kuuluu tässä tietokoneessa meneillään olevaan kirjautumiseen.",
		Back:         "Palaa sivulle, jolla kirjaudut sisään.",
		NotTheAnswer: "Tämä ei ole vastaus kirjautumiseesi",
		Misread:      "Kirjautumissivulta palannutta vastausta ei voitu käyttää.",
		Used:         "Linkki on jo käytetty",
		Once:         "Kirjautumislinkki toimii vain kerran.",
		Unless:       "Jos et ole kirjautunut sisään, aloita uudelleen komennolla: portvakt-agent login",
	},
	"nl": {
		LoggedIn:     "U bent ingelogd",
		Close:        "U kunt dit venster sluiten en uw apps openen.",
		Welcome:      "Welkom, %s.",
		NotLoggedIn:  "U bent niet ingelogd",
		Lost:         "De gateway was niet bereikbaar, dus het inloggen is niet voltooid.",
		Refused:      "De gateway heeft het inloggen geweigerd.",
		Again:        "Begin opnieuw met: portvakt-agent login",
		Cause:        "Reden",
		Remedy:       "Wat u kunt doen",
		NotHere:      "Hier is niets te zien",
		UnderWay:     "Dit adres hoort bij een aanmelding die op deze laptop bezig is.",
		Back:         "Ga terug naar de pagina waarop u inlogt.",
		NotTheAnswer: "Dit is niet het antwoord op uw aanmelding",
		Misread:      "Wat van de inlogpagina terugkwam, was niet bruikbaar.",
		Used:         "Deze link is al gebruikt",
		Once:         "Een inloglink werkt één keer.",
		Unless:       "Bent u niet ingelogd, begin dan opnieuw met: portvakt-agent login",
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
