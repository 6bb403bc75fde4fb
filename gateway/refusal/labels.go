package refusal

// labels are the page's own words, everything but what the Decision says.
type labels struct {
	Refused, Fault, Down          string // headings
	Found, Checked, Is, Needed    string
	Nothing, Remedy               string
	Reason, Decision, Time, Stamp string // Stamp is the form of the time
}

const stamp = "2006-01-02 15:04:05 UTC"

// words has an entry for each of policy.Languages.
var words = map[string]labels{
	"en": {
		"Access refused", "This request was refused", "This app cannot be reached now",
		"What was found", "Checked", "Found", "Needed", "nothing", "What you can do", "Reason", "Decision", "Time", "2 January 2006, 15:04:05 UTC",
	},
	"sv": {
		"Åtkomst nekad", "Begäran nekades", "Appen kan inte nås just nu",
		"Vad som hittades", "Kontrollerat", "Hittat", "Krävs", "inget", "Vad du kan göra", "Orsak", "Beslut", "Tid", stamp,
	},
	"nb": {
		"Tilgang avvist", "Forespørselen ble avvist", "Appen kan ikke nås akkurat nå",
		"Hva som ble funnet", "Kontrollert", "Funnet", "Kreves", "ingenting", "Hva du kan gjøre", "Årsak", "Beslutning", "Tid", stamp,
	},
	"da": {
		"Adgang afvist", "Forespørgslen blev afvist", "Appen kan ikke nås lige nu",
		"Hvad der blev fundet", "Kontrolleret", "Fundet", "Kræves", "intet", "Hvad du kan gøre", "Årsag", "Beslutning", "Tid", stamp,
	},
	"fi": {
		"Pääsy estetty", "Pyyntö evättiin", "Sovellukseen ei juuri nyt saada yhteyttä",
		"Mitä havaittiin", "Tarkistettu", "Havaittu", "Vaaditaan", "ei mitään", "Mitä voit tehdä", "Syy", "Päätös", "Aika", stamp,
	},
	"nl": {
		"Toegang geweigerd", "Dit verzoek is geweigerd", "Deze app is nu niet bereikbaar",
		"Wat er is gevonden", "Gecontroleerd", "Gevonden", "Vereist", "niets", "Wat u kunt doen", "Reden", "Beslissing", "Tijd", stamp,
	},
}
