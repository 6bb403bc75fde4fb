package policy

import (
	"golang.org/x/text/language"
)

// Text is what a Reason says to people: one plain sentence, and what to do and
// who can.
type Text struct{ Message, Remedy string }

// Entry is a Reason's Text in every language of [Languages].
type Entry map[string]Text

// Languages are those people are answered in. The first is the log's, and the
// one for whoever asks for none of them.
var Languages = []string{"en", "sv", "nb", "da", "fi", "nl"}

var languageMatcher = func() language.Matcher {
	tags := make([]language.Tag, len(Languages))
	for i, l := range Languages {
		tags[i] = language.MustParse(l)
	}
	return language.NewMatcher(tags)
}()

// Language picks one of [Languages] for a preference in the form of the
// Accept-Language header (RFC 9110, section 12.5.4), such as "sv-FI, en;q=0.5".
func Language(accept string) string {
	if len(accept) > 256 {
		return Languages[0]
	}
	// A malformed preference still gives the tags before the fault.
	tags, _, _ := language.ParseAcceptLanguage(accept)
	_, i, confidence := languageMatcher.Match(tags...)
	if confidence == language.No {
		return Languages[0]
	}
	return Languages[i]
}

// In returns d with its Reason's text in one of [Languages]. What a custom
// module wrote stays as it is written.
func (d Decision) In(lang string) Decision {
	e := Reasons[d.Reason]
	to, ok := e[lang]
	if !ok {
		return d
	}
	if d.Message == e[Languages[0]].Message {
		d.Message = to.Message
	}
	if d.Remedy == e[Languages[0]].Remedy {
		d.Remedy = to.Remedy
	}
	return d
}

// Finish says in every language that what is open may be finished.
var Finish = map[string]string{
	"en": "You may finish the calls and connections that are open; nothing new begins.",
	"sv": "Du får avsluta de samtal och anslutningar som är öppna; inget nytt påbörjas.",
	"nb": "Du kan fullføre samtalene og tilkoblingene som er åpne; ikke noe nytt begynner.",
	"da": "Du må gøre de åbne samtaler og forbindelser færdige; intet nyt begynder.",
	"fi": "Saat viedä avoimet puhelut ja yhteydet loppuun; mitään uutta ei aloiteta.",
	"nl": "U mag de open gesprekken en verbindingen afmaken; er begint niets nieuws.",
}

// Reasons is the closed table: adding a Reason is one constant and one entry.
// The commands in it are typed as they are in every language.
var Reasons = map[Reason]Entry{
	ReasonAllowed: {
		"en": {"Access is allowed.", ""},
		"sv": {"Åtkomst är tillåten.", ""},
		"nb": {"Tilgang er tillatt.", ""},
		"da": {"Adgang er tilladt.", ""},
		"fi": {"Pääsy on sallittu.", ""},
		"nl": {"Toegang is toegestaan.", ""},
	},
	ReasonUnknownApp: {
		"en": {"There is no such app for this device.", "Check the name with: portvakt-agent apps"},
		"sv": {"Den här enheten har ingen sådan app.", "Kontrollera namnet med: portvakt-agent apps"},
		"nb": {"Denne enheten har ingen slik app.", "Kontroller navnet med: portvakt-agent apps"},
		"da": {"Denne enhed har ikke nogen sådan app.", "Kontrollér navnet med: portvakt-agent apps"},
		"fi": {"Tällä laitteella ei ole sellaista sovellusta.", "Tarkista nimi komennolla: portvakt-agent apps"},
		"nl": {"Dit apparaat heeft geen app met die naam.", "Controleer de naam met: portvakt-agent apps"},
	},
	ReasonLoginRequired: {
		"en": {"You are not logged in.", "Log in with: portvakt-agent login"},
		"sv": {"Du är inte inloggad.", "Logga in med: portvakt-agent login"},
		"nb": {"Du er ikke logget inn.", "Logg inn med: portvakt-agent login"},
		"da": {"Du er ikke logget ind.", "Log ind med: portvakt-agent login"},
		"fi": {"Et ole kirjautunut sisään.", "Kirjaudu sisään komennolla: portvakt-agent login"},
		"nl": {"U bent niet ingelogd.", "Log in met: portvakt-agent login"},
	},
	ReasonSessionExpired: {
		"en": {"Your login has expired.", "Log in again with: portvakt-agent login"},
		"sv": {"Din inloggning har gått ut.", "Logga in igen med: portvakt-agent login"},
		"nb": {"Innloggingen din har utløpt.", "Logg inn igjen med: portvakt-agent login"},
		"da": {"Dit login er udløbet.", "Log ind igen med: portvakt-agent login"},
		"fi": {"Kirjautumisesi on vanhentunut.", "Kirjaudu uudelleen komennolla: portvakt-agent login"},
		"nl": {"Uw aanmelding is verlopen.", "Log opnieuw in met: portvakt-agent login"},
	},
	ReasonSessionRevoked: {
		"en": {"Your login was ended by an administrator or by your identity provider.", "Log in again with: portvakt-agent login. If that is refused too, ask your IT support."},
		"sv": {"Din inloggning avslutades av en administratör eller av din identitetsleverantör.", "Logga in igen med: portvakt-agent login. Om det också nekas, fråga din IT-support."},
		"nb": {"Innloggingen din ble avsluttet av en administrator eller av identitetsleverandøren din.", "Logg inn igjen med: portvakt-agent login. Hvis det også avvises, spør IT-støtten din."},
		"da": {"Dit login blev afsluttet af en administrator eller af din identitetsudbyder.", "Log ind igen med: portvakt-agent login. Hvis det også afvises, så spørg din IT-support."},
		"fi": {"Järjestelmänvalvoja tai identiteetintarjoajasi päätti kirjautumisesi.", "Kirjaudu uudelleen komennolla: portvakt-agent login. Jos sekin evätään, kysy IT-tuestasi."},
		"nl": {"Uw aanmelding is beëindigd door een beheerder of door uw identiteitsprovider.", "Log opnieuw in met: portvakt-agent login. Wordt ook dat geweigerd, vraag het dan aan uw IT-ondersteuning."},
	},
	ReasonDeviceRevoked: {
		"en": {"This laptop is no longer allowed to connect.", "Ask your IT support; they can enrol it again."},
		"sv": {"Den här datorn får inte längre ansluta.", "Fråga din IT-support; de kan registrera den på nytt."},
		"nb": {"Denne datamaskinen har ikke lenger lov til å koble seg til.", "Spør IT-støtten din; de kan registrere den på nytt."},
		"da": {"Denne computer må ikke længere oprette forbindelse.", "Spørg din IT-support; de kan registrere den igen."},
		"fi": {"Tämä tietokone ei enää saa muodostaa yhteyttä.", "Kysy IT-tuestasi; he voivat rekisteröidä sen uudelleen."},
		"nl": {"Deze laptop mag geen verbinding meer maken.", "Vraag het aan uw IT-ondersteuning; zij kunnen hem opnieuw registreren."},
	},
	ReasonGroupNotAllowed: {
		"en": {"Your account is in none of the groups that may use this app.", "If you need it for your work, ask your supervisor to have your account added to one of the groups."},
		"sv": {"Ditt konto är inte med i någon av grupperna som får använda appen.", "Om du behöver den i ditt arbete, be din arbetsledare att få ditt konto tillagt i någon av grupperna."},
		"nb": {"Kontoen din er ikke med i noen av gruppene som kan bruke appen.", "Hvis du trenger den i arbeidet, be lederen din om å få kontoen din lagt til i en av gruppene."},
		"da": {"Din konto er ikke med i nogen af de grupper, der må bruge appen.", "Hvis du har brug for den i dit arbejde, så bed din leder om at få din konto føjet til en af grupperne."},
		"fi": {"Tilisi ei kuulu mihinkään ryhmään, joka saa käyttää sovellusta.", "Jos tarvitset sitä työssäsi, pyydä esihenkilöäsi lisäyttämään tilisi johonkin ryhmistä."},
		"nl": {"Uw account zit in geen van de groepen die deze app mogen gebruiken.", "Hebt u de app nodig voor uw werk, vraag dan uw leidinggevende om uw account aan een van de groepen te laten toevoegen."},
	},
	ReasonPostureFailed: {
		"en": {"This laptop does not meet a condition of the app.", "Turn on what is named above; access returns within seconds. If you cannot, ask your IT support."},
		"sv": {"Datorn uppfyller inte ett av appens villkor.", "Slå på det som nämns ovan; åtkomsten kommer tillbaka inom några sekunder. Om du inte kan, fråga din IT-support."},
		"nb": {"Datamaskinen oppfyller ikke et av appens krav.", "Slå på det som er nevnt ovenfor; tilgangen kommer tilbake i løpet av sekunder. Hvis du ikke kan, spør IT-støtten din."},
		"da": {"Computeren opfylder ikke en af appens betingelser.", "Slå det til, der er nævnt ovenfor; adgangen vender tilbage inden for få sekunder. Hvis du ikke kan, så spørg din IT-support."},
		"fi": {"Tietokone ei täytä yhtä sovelluksen ehdoista.", "Ota käyttöön yllä mainittu; pääsy palautuu muutamassa sekunnissa. Jos et voi, kysy IT-tuestasi."},
		"nl": {"Deze laptop voldoet niet aan een voorwaarde van de app.", "Zet aan wat hierboven staat; binnen enkele seconden hebt u weer toegang. Lukt dat niet, vraag het dan aan uw IT-ondersteuning."},
	},
	ReasonPostureUnknown: {
		"en": {"A condition of the app could not be checked on this laptop.", "Ask your IT support to look at the named check (a missing posture helper is the usual cause)."},
		"sv": {"Ett av appens villkor kunde inte kontrolleras på datorn.", "Be din IT-support att se på den nämnda kontrollen (oftast saknas hjälpprogrammet för kontroller)."},
		"nb": {"Et av appens krav kunne ikke kontrolleres på datamaskinen.", "Be IT-støtten din se på den nevnte kontrollen (som oftest mangler hjelpeprogrammet for kontroller)."},
		"da": {"En af appens betingelser kunne ikke kontrolleres på computeren.", "Bed din IT-support om at se på den nævnte kontrol (oftest mangler hjælpeprogrammet til kontroller)."},
		"fi": {"Yhtä sovelluksen ehdoista ei voitu tarkistaa tässä tietokoneessa.", "Pyydä IT-tukeasi katsomaan mainittua tarkistusta (tavallisesti tarkistusten apuohjelma puuttuu)."},
		"nl": {"Een voorwaarde van de app kon op deze laptop niet worden gecontroleerd.", "Vraag uw IT-ondersteuning naar de genoemde controle te kijken (meestal ontbreekt het hulpprogramma voor controles)."},
	},
	ReasonPostureStale: {
		"en": {"This laptop has not reported its condition lately.", "Check that portvakt-agent is running; it reports every 30 seconds."},
		"sv": {"Datorn har inte rapporterat sitt tillstånd på ett tag.", "Kontrollera att portvakt-agent är igång; den rapporterar var 30:e sekund."},
		"nb": {"Datamaskinen har ikke meldt fra om tilstanden sin på en stund.", "Kontroller at portvakt-agent kjører; den melder fra hvert 30. sekund."},
		"da": {"Computeren har ikke meldt sin tilstand i et stykke tid.", "Kontrollér, at portvakt-agent kører; den melder hvert 30. sekund."},
		"fi": {"Tietokone ei ole ilmoittanut tilaansa vähään aikaan.", "Tarkista, että portvakt-agent on käynnissä; se ilmoittaa 30 sekunnin välein."},
		"nl": {"Deze laptop heeft zijn toestand al even niet gemeld.", "Controleer of portvakt-agent draait; die meldt elke 30 seconden."},
	},
	ReasonLocationNotAllowed: {
		"en": {"The app may not be used from where you are.", "Use it from an allowed place. A VPN or a travel router may make you appear elsewhere: turn it off."},
		"sv": {"Appen får inte användas från den plats där du är.", "Använd den från en tillåten plats. En VPN eller en reserouter kan få dig att synas på en annan plats: stäng av den."},
		"nb": {"Appen kan ikke brukes fra stedet der du er.", "Bruk den fra et tillatt sted. En VPN eller en reiseruter kan få deg til å se ut som du er et annet sted: slå den av."},
		"da": {"Appen må ikke bruges fra det sted, hvor du er.", "Brug den fra et tilladt sted. En VPN eller en rejserouter kan få dig til at se ud til at være et andet sted: slå den fra."},
		"fi": {"Sovellusta ei saa käyttää siitä paikasta, jossa olet.", "Käytä sitä sallitusta paikasta. VPN tai matkareititin voi saada sijaintisi näyttämään toiselta: ota se pois käytöstä."},
		"nl": {"De app mag niet worden gebruikt vanaf de plaats waar u bent.", "Gebruik de app vanaf een toegestane plaats. Door een VPN of reisrouter kunt u ergens anders lijken te zijn: zet die uit."},
	},
	ReasonLocationUnknown: {
		"en": {"Where you are could not be determined, and the app requires it.", "Turn off VPNs and try your home network. If it persists, ask your IT support."},
		"sv": {"Det gick inte att avgöra var du är, och appen kräver det.", "Stäng av VPN och prova ditt hemnätverk. Om det kvarstår, fråga din IT-support."},
		"nb": {"Det gikk ikke å fastslå hvor du er, og appen krever det.", "Slå av VPN og prøv hjemmenettverket ditt. Hvis det vedvarer, spør IT-støtten din."},
		"da": {"Det kunne ikke afgøres, hvor du er, og appen kræver det.", "Slå VPN fra og prøv dit hjemmenetværk. Hvis det fortsætter, så spørg din IT-support."},
		"fi": {"Sijaintiasi ei voitu selvittää, ja sovellus edellyttää sitä.", "Ota VPN pois käytöstä ja kokeile kotiverkkoasi. Jos ongelma jatkuu, kysy IT-tuestasi."},
		"nl": {"Er kon niet worden bepaald waar u bent, en de app vereist dat.", "Zet VPN's uit en probeer uw thuisnetwerk. Blijft het zo, vraag het dan aan uw IT-ondersteuning."},
	},
	ReasonOutsideHours: {
		"en": {"The app may not be used at this time.", "Try again within the hours named above, or ask your supervisor."},
		"sv": {"Appen får inte användas vid den här tiden.", "Försök igen inom tiderna ovan, eller fråga din arbetsledare."},
		"nb": {"Appen kan ikke brukes på dette tidspunktet.", "Prøv igjen innenfor tidene ovenfor, eller spør lederen din."},
		"da": {"Appen må ikke bruges på dette tidspunkt.", "Prøv igen inden for tiderne ovenfor, eller spørg din leder."},
		"fi": {"Sovellusta ei saa käyttää tähän aikaan.", "Yritä uudelleen yllä mainittuina aikoina tai kysy esihenkilöltäsi."},
		"nl": {"De app mag op dit tijdstip niet worden gebruikt.", "Probeer het opnieuw binnen de tijden hierboven, of vraag het aan uw leidinggevende."},
	},
	ReasonMethodNotAllowed: {
		"en": {"You may use this app, but not for this action.", "If your work needs this action, ask your supervisor."},
		"sv": {"Du får använda appen, men inte för den här åtgärden.", "Om ditt arbete kräver den, fråga din arbetsledare."},
		"nb": {"Du kan bruke appen, men ikke til denne handlingen.", "Hvis arbeidet ditt krever den, spør lederen din."},
		"da": {"Du må bruge appen, men ikke til denne handling.", "Hvis dit arbejde kræver den, så spørg din leder."},
		"fi": {"Saat käyttää sovellusta, mutta et tähän toimintoon.", "Jos työsi vaatii sitä, kysy esihenkilöltäsi."},
		"nl": {"U mag deze app gebruiken, maar niet voor deze handeling.", "Hebt u dit nodig voor uw werk, vraag het dan aan uw leidinggevende."},
	},
	ReasonPathNotAllowed: {
		"en": {"You may use this app, but not this part of it.", "If your work needs this part, ask your supervisor."},
		"sv": {"Du får använda appen, men inte den här delen av den.", "Om ditt arbete kräver den, fråga din arbetsledare."},
		"nb": {"Du kan bruke appen, men ikke denne delen av den.", "Hvis arbeidet ditt krever den, spør lederen din."},
		"da": {"Du må bruge appen, men ikke denne del af den.", "Hvis dit arbejde kræver den, så spørg din leder."},
		"fi": {"Saat käyttää sovellusta, mutta et tätä sen osaa.", "Jos työsi vaatii sitä, kysy esihenkilöltäsi."},
		"nl": {"U mag deze app gebruiken, maar niet dit deel ervan.", "Hebt u dit nodig voor uw werk, vraag het dan aan uw leidinggevende."},
	},
	ReasonPolicyDenied: {
		"en": {"A rule of your company refuses this.", "Ask your IT support; tell them the decision's number."},
		"sv": {"En regel på ditt företag nekar detta.", "Fråga din IT-support; ge dem beslutets nummer."},
		"nb": {"En regel i bedriften din avviser dette.", "Spør IT-støtten din; oppgi beslutningens nummer."},
		"da": {"En regel i din virksomhed afviser dette.", "Spørg din IT-support; oplys beslutningens nummer."},
		"fi": {"Yrityksesi sääntö estää tämän.", "Kysy IT-tuestasi; kerro heille päätöksen numero."},
		"nl": {"Een regel van uw bedrijf weigert dit.", "Vraag het aan uw IT-ondersteuning; geef het nummer van de beslissing door."},
	},
	ReasonCrossSite: {
		"en": {"Another web page tried to use this app in your name.", "Open the app itself from its address. If you did, tell your IT support which page sent you."},
		"sv": {"En annan webbsida försökte använda appen i ditt namn.", "Öppna appen själv från dess adress. Om du gjorde det, berätta för din IT-support vilken sida du kom från."},
		"nb": {"En annen nettside prøvde å bruke appen i ditt navn.", "Åpne selve appen fra adressen dens. Hvis du gjorde det, fortell IT-støtten din hvilken side du kom fra."},
		"da": {"En anden webside forsøgte at bruge appen i dit navn.", "Åbn selve appen fra dens adresse. Hvis du gjorde det, så fortæl din IT-support, hvilken side du kom fra."},
		"fi": {"Toinen verkkosivu yritti käyttää sovellusta nimissäsi.", "Avaa itse sovellus sen osoitteesta. Jos teit niin, kerro IT-tuellesi, miltä sivulta tulit."},
		"nl": {"Een andere webpagina probeerde deze app uit uw naam te gebruiken.", "Open de app zelf via zijn adres. Deed u dat al, vertel uw IT-ondersteuning dan van welke pagina u kwam."},
	},
	ReasonPolicyUnavailable: {
		"en": {"The gateway has no valid policy yet, so it refuses everything.", "Ask your IT support to look at the gateway's policy files."},
		"sv": {"Gatewayen har ännu inga giltiga regler, så den nekar allt.", "Be din IT-support att se på gatewayens regelfiler."},
		"nb": {"Gatewayen har ennå ingen gyldige regler, så den avviser alt.", "Be IT-støtten din se på gatewayens regelfiler."},
		"da": {"Gatewayen har endnu ingen gyldige regler, så den afviser alt.", "Bed din IT-support om at se på gatewayens regelfiler."},
		"fi": {"Yhdyskäytävällä ei ole vielä kelvollisia sääntöjä, joten se estää kaiken.", "Pyydä IT-tukeasi katsomaan yhdyskäytävän sääntötiedostoja."},
		"nl": {"De gateway heeft nog geen geldig beleid en weigert daarom alles.", "Vraag uw IT-ondersteuning naar de beleidsbestanden van de gateway te kijken."},
	},
	ReasonPolicyError: {
		"en": {"The policy could not be evaluated, so the gateway refuses.", "Ask your IT support; tell them the decision's number."},
		"sv": {"Reglerna kunde inte utvärderas, så gatewayen nekar.", "Fråga din IT-support; ge dem beslutets nummer."},
		"nb": {"Reglene kunne ikke vurderes, så gatewayen avviser.", "Spør IT-støtten din; oppgi beslutningens nummer."},
		"da": {"Reglerne kunne ikke vurderes, så gatewayen afviser.", "Spørg din IT-support; oplys beslutningens nummer."},
		"fi": {"Sääntöjä ei voitu arvioida, joten yhdyskäytävä estää.", "Kysy IT-tuestasi; kerro heille päätöksen numero."},
		"nl": {"Het beleid kon niet worden beoordeeld, dus de gateway weigert.", "Vraag het aan uw IT-ondersteuning; geef het nummer van de beslissing door."},
	},
	ReasonAuditUnavailable: {
		"en": {"The gateway cannot record what happens, so it lets nothing new through.", "Try again in a moment; your IT support is being alerted by the gateway's health page."},
		"sv": {"Gatewayen kan inte logga vad som händer, så den släpper inte igenom något nytt.", "Försök igen om en stund; din IT-support larmas av gatewayens hälsosida."},
		"nb": {"Gatewayen kan ikke loggføre det som skjer, så den slipper ikke gjennom noe nytt.", "Prøv igjen om litt; IT-støtten din varsles av gatewayens helseside."},
		"da": {"Gatewayen kan ikke logge, hvad der sker, så den lukker intet nyt igennem.", "Prøv igen om lidt; din IT-support advares af gatewayens sundhedsside."},
		"fi": {"Yhdyskäytävä ei voi kirjata tapahtumia, joten se ei päästä läpi mitään uutta.", "Yritä hetken kuluttua uudelleen; yhdyskäytävän tilasivu hälyttää IT-tukesi."},
		"nl": {"De gateway kan niet vastleggen wat er gebeurt en laat daarom niets nieuws door.", "Probeer het zo dadelijk opnieuw; uw IT-ondersteuning wordt gewaarschuwd door de statuspagina van de gateway."},
	},
	ReasonUpstreamUnavailable: {
		"en": {"The app itself does not answer.", "Try again in a moment. If it persists, tell your IT support that the app is down."},
		"sv": {"Själva appen svarar inte.", "Försök igen om en stund. Om det kvarstår, meddela din IT-support att appen är nere."},
		"nb": {"Selve appen svarer ikke.", "Prøv igjen om litt. Hvis det vedvarer, si fra til IT-støtten din at appen er nede."},
		"da": {"Selve appen svarer ikke.", "Prøv igen om lidt. Hvis det fortsætter, så fortæl din IT-support, at appen er nede."},
		"fi": {"Sovellus itse ei vastaa.", "Yritä hetken kuluttua uudelleen. Jos ongelma jatkuu, kerro IT-tuellesi, että sovellus ei toimi."},
		"nl": {"De app zelf geeft geen antwoord.", "Probeer het zo dadelijk opnieuw. Blijft het zo, meld uw IT-ondersteuning dan dat de app niet werkt."},
	},
	ReasonUpstreamForbidden: {
		"en": {"The app's address is one that the gateway must not dial.", "Ask your IT support to name the address range under the app's `allow`."},
		"sv": {"Appens adress är en som gatewayen inte får ansluta till.", "Be din IT-support att ange adressområdet under appens `allow`."},
		"nb": {"Appens adresse er en som gatewayen ikke har lov til å koble til.", "Be IT-støtten din oppgi adresseområdet under appens `allow`."},
		"da": {"Appens adresse er en, som gatewayen ikke må forbinde til.", "Bed din IT-support om at angive adresseområdet under appens `allow`."},
		"fi": {"Sovelluksen osoite on sellainen, johon yhdyskäytävä ei saa yhdistää.", "Pyydä IT-tukeasi nimeämään osoitealue sovelluksen kohdassa `allow`."},
		"nl": {"Het adres van de app is er een waarmee de gateway geen verbinding mag maken.", "Vraag uw IT-ondersteuning het adresbereik op te nemen onder `allow` van de app."},
	},
	ReasonBadRequest: {
		"en": {"The request was not understood in only one way, so it was refused.", "Open the app's address anew. If it persists, ask your IT support."},
		"sv": {"Begäran kunde förstås på mer än ett sätt och nekades därför.", "Öppna appens adress på nytt. Om det kvarstår, fråga din IT-support."},
		"nb": {"Forespørselen kunne forstås på mer enn én måte og ble derfor avvist.", "Åpne appens adresse på nytt. Hvis det vedvarer, spør IT-støtten din."},
		"da": {"Forespørgslen kunne forstås på mere end én måde og blev derfor afvist.", "Åbn appens adresse igen. Hvis det fortsætter, så spørg din IT-support."},
		"fi": {"Pyyntö voitiin ymmärtää useammalla kuin yhdellä tavalla, joten se evättiin.", "Avaa sovelluksen osoite uudelleen. Jos ongelma jatkuu, kysy IT-tuestasi."},
		"nl": {"Het verzoek kon op meer dan één manier worden gelezen en is daarom geweigerd.", "Open het adres van de app opnieuw. Blijft het zo, vraag het dan aan uw IT-ondersteuning."},
	},
	ReasonMisdirected: {
		"en": {"The request named a host that is not one of this app's.", "Open the app by its own address."},
		"sv": {"Begäran angav ett värdnamn som inte är appens.", "Öppna appen med dess egen adress."},
		"nb": {"Forespørselen oppga et vertsnavn som ikke er appens.", "Åpne appen med dens egen adresse."},
		"da": {"Forespørgslen angav et værtsnavn, der ikke er appens.", "Åbn appen med dens egen adresse."},
		"fi": {"Pyyntö nimesi isäntänimen, joka ei ole tämän sovelluksen.", "Avaa sovellus sen omasta osoitteesta."},
		"nl": {"Het verzoek noemde een hostnaam die niet van deze app is.", "Open de app via zijn eigen adres."},
	},
	ReasonTooManyFlows: {
		"en": {"This laptop has too many connections open.", "Close what you do not need and try again."},
		"sv": {"Datorn har för många anslutningar öppna.", "Stäng det du inte behöver och försök igen."},
		"nb": {"Datamaskinen har for mange tilkoblinger åpne.", "Lukk det du ikke trenger, og prøv igjen."},
		"da": {"Computeren har for mange forbindelser åbne.", "Luk det, du ikke har brug for, og prøv igen."},
		"fi": {"Tietokoneessa on liikaa avoimia yhteyksiä.", "Sulje tarpeettomat ja yritä uudelleen."},
		"nl": {"Deze laptop heeft te veel verbindingen open.", "Sluit wat u niet nodig hebt en probeer het opnieuw."},
	},
	ReasonLockedDown: {
		"en": {"Your company has closed this for the time being.", "Wait for word from your supervisor or IT support; access returns by itself when it is opened again."},
		"sv": {"Ditt företag har stängt detta tills vidare.", "Vänta på besked från din arbetsledare eller IT-support; åtkomsten kommer tillbaka av sig själv när det öppnas igen."},
		"nb": {"Bedriften din har stengt dette inntil videre.", "Vent på beskjed fra lederen din eller IT-støtten; tilgangen kommer tilbake av seg selv når det åpnes igjen."},
		"da": {"Din virksomhed har lukket for dette indtil videre.", "Afvent besked fra din leder eller IT-support; adgangen vender tilbage af sig selv, når der åbnes igen."},
		"fi": {"Yrityksesi on sulkenut tämän toistaiseksi.", "Odota tietoa esihenkilöltäsi tai IT-tuelta; pääsy palautuu itsestään, kun se avataan uudelleen."},
		"nl": {"Uw bedrijf heeft dit voorlopig afgesloten.", "Wacht op bericht van uw leidinggevende of IT-ondersteuning; de toegang komt vanzelf terug zodra het weer is vrijgegeven."},
	},
	ReasonIDPUnavailable: {
		"en": {"Your company's login service does not answer, so nobody can log in right now.", "Whoever is logged in works on, and open calls go on. Try to log in again in a few minutes. If it persists, tell your IT support that the login service does not answer."},
		"sv": {"Ditt företags inloggningstjänst svarar inte, så ingen kan logga in just nu.", "Den som är inloggad arbetar vidare, och öppna samtal fortsätter. Försök logga in igen om några minuter. Om det kvarstår, meddela din IT-support att inloggningstjänsten inte svarar."},
		"nb": {"Bedriftens innloggingstjeneste svarer ikke, så ingen kan logge inn akkurat nå.", "Den som er logget inn, arbeider videre, og åpne samtaler fortsetter. Prøv å logge inn igjen om noen minutter. Hvis det vedvarer, si fra til IT-støtten din at innloggingstjenesten ikke svarer."},
		"da": {"Din virksomheds logintjeneste svarer ikke, så ingen kan logge ind lige nu.", "Den, der er logget ind, arbejder videre, og åbne samtaler fortsætter. Prøv at logge ind igen om nogle minutter. Hvis det fortsætter, så fortæl din IT-support, at logintjenesten ikke svarer."},
		"fi": {"Yrityksesi kirjautumispalvelu ei vastaa, joten kukaan ei voi juuri nyt kirjautua sisään.", "Sisään kirjautuneet voivat jatkaa työtään, ja avoimet puhelut jatkuvat. Yritä kirjautua uudelleen muutaman minuutin kuluttua. Jos ongelma jatkuu, kerro IT-tuellesi, että kirjautumispalvelu ei vastaa."},
		"nl": {"De aanmeldservice van uw bedrijf antwoordt niet, dus niemand kan nu inloggen.", "Wie al is ingelogd werkt verder, en open gesprekken gaan door. Probeer over een paar minuten opnieuw in te loggen. Blijft het zo, meld uw IT-ondersteuning dan dat de aanmeldservice niet antwoordt."},
	},
}
