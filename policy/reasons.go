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
		"en": {"Your login was ended by an administrator or by your company's login service.", "Log in again with: portvakt-agent login. If that is refused too, ask your IT support."},
		"sv": {"Din inloggning avslutades av en administratör eller av ditt företags inloggningstjänst.", "Logga in igen med: portvakt-agent login. Om det också nekas, fråga din IT-support."},
		"nb": {"Innloggingen din ble avsluttet av en administrator eller av bedriftens innloggingstjeneste.", "Logg inn igjen med: portvakt-agent login. Hvis det også avvises, spør IT-støtten din."},
		"da": {"Dit login blev afsluttet af en administrator eller af din virksomheds logintjeneste.", "Log ind igen med: portvakt-agent login. Hvis det også afvises, så spørg din IT-support."},
		"fi": {"Järjestelmänvalvoja tai yrityksesi kirjautumispalvelu päätti kirjautumisesi.", "Kirjaudu uudelleen komennolla: portvakt-agent login. Jos sekin evätään, kysy IT-tuestasi."},
		"nl": {"Uw aanmelding is beëindigd door een beheerder of door de aanmeldservice van uw bedrijf.", "Log opnieuw in met: portvakt-agent login. Wordt ook dat geweigerd, vraag het dan aan uw IT-ondersteuning."},
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
		"en": {"A setting of this laptop is not as the app needs it.", "Turn on what is missing; access returns within seconds. If you cannot, ask your IT support."},
		"sv": {"En inställning på datorn är inte som appen kräver.", "Slå på det som saknas; åtkomsten kommer tillbaka inom några sekunder. Om du inte kan, fråga din IT-support."},
		"nb": {"En innstilling på datamaskinen er ikke slik appen krever.", "Slå på det som mangler; tilgangen kommer tilbake i løpet av sekunder. Hvis du ikke kan, spør IT-støtten din."},
		"da": {"En indstilling på computeren er ikke, som appen kræver.", "Slå det til, der mangler; adgangen vender tilbage inden for få sekunder. Hvis du ikke kan, så spørg din IT-support."},
		"fi": {"Tietokoneen asetus ei ole sellainen kuin sovellus vaatii.", "Ota käyttöön se, mikä puuttuu; pääsy palautuu muutamassa sekunnissa. Jos et voi, kysy IT-tuestasi."},
		"nl": {"Een instelling van deze laptop is niet zoals de app vereist.", "Zet aan wat ontbreekt; binnen enkele seconden hebt u weer toegang. Lukt dat niet, vraag het dan aan uw IT-ondersteuning."},
	},
	ReasonPostureUnknown: {
		"en": {"A setting that the app needs could not be checked on this laptop.", "Ask your IT support, and tell them what could not be checked. Most often Portvakt's helper program (posture-helper) is not running on the laptop."},
		"sv": {"En inställning som appen kräver kunde inte kontrolleras på datorn.", "Fråga din IT-support och berätta vad som inte kunde kontrolleras. Oftast är Portvakts hjälpprogram (posture-helper) inte igång på datorn."},
		"nb": {"En innstilling som appen krever, kunne ikke kontrolleres på datamaskinen.", "Spør IT-støtten din, og fortell hva som ikke kunne kontrolleres. Som oftest kjører ikke Portvakts hjelpeprogram (posture-helper) på datamaskinen."},
		"da": {"En indstilling, som appen kræver, kunne ikke kontrolleres på computeren.", "Spørg din IT-support, og fortæl, hvad der ikke kunne kontrolleres. Oftest kører Portvakts hjælpeprogram (posture-helper) ikke på computeren."},
		"fi": {"Sovelluksen vaatimaa asetusta ei voitu tarkistaa tässä tietokoneessa.", "Kysy IT-tuestasi ja kerro, mitä ei voitu tarkistaa. Tavallisesti Portvaktin apuohjelma (posture-helper) ei ole käynnissä tietokoneessa."},
		"nl": {"Een instelling die de app vereist, kon op deze laptop niet worden gecontroleerd.", "Vraag het aan uw IT-ondersteuning en vertel wat er niet kon worden gecontroleerd. Meestal draait het hulpprogramma van Portvakt (posture-helper) niet op de laptop."},
	},
	ReasonPostureStale: {
		"en": {"This laptop has not said lately how it is set up.", "See whether Portvakt is running: portvakt-agent status. It reports every 30 seconds. If that does not help, ask your IT support."},
		"sv": {"Datorn har inte på ett tag berättat hur den är inställd.", "Se efter om Portvakt är igång: portvakt-agent status. Den rapporterar var 30:e sekund. Om det inte hjälper, fråga din IT-support."},
		"nb": {"Datamaskinen har ikke på en stund meldt hvordan den er innstilt.", "Se etter om Portvakt kjører: portvakt-agent status. Den melder fra hvert 30. sekund. Hvis det ikke hjelper, spør IT-støtten din."},
		"da": {"Computeren har i et stykke tid ikke meldt, hvordan den er indstillet.", "Se efter, om Portvakt kører: portvakt-agent status. Den melder hvert 30. sekund. Hvis det ikke hjælper, så spørg din IT-support."},
		"fi": {"Tietokone ei ole vähään aikaan kertonut asetuksistaan.", "Katso, onko Portvakt käynnissä: portvakt-agent status. Se ilmoittaa 30 sekunnin välein. Jos se ei auta, kysy IT-tuestasi."},
		"nl": {"Deze laptop heeft al even niet gemeld hoe hij is ingesteld.", "Kijk of Portvakt draait: portvakt-agent status. Die meldt elke 30 seconden. Helpt dat niet, vraag het dan aan uw IT-ondersteuning."},
	},
	ReasonLocationNotAllowed: {
		"en": {"The app may not be used from where you are.", "Use it from an allowed place. If you are in one, turn off VPNs and travel routers: they can make you appear elsewhere."},
		"sv": {"Appen får inte användas från den plats där du är.", "Använd den från en tillåten plats. Om du redan är på en, stäng av VPN och reserouter: de kan få det att se ut som om du är någon annanstans."},
		"nb": {"Appen kan ikke brukes fra stedet der du er.", "Bruk den fra et tillatt sted. Hvis du allerede er på et, slå av VPN og reiseruter: de kan få det til å se ut som du er et annet sted."},
		"da": {"Appen må ikke bruges fra det sted, hvor du er.", "Brug den fra et tilladt sted. Hvis du allerede er et, så slå VPN og rejserouter fra: de kan få det til at se ud, som om du er et andet sted."},
		"fi": {"Sovellusta ei saa käyttää siitä paikasta, jossa olet.", "Käytä sitä sallitusta paikasta. Jos olet jo sellaisessa, ota VPN ja matkareititin pois käytöstä: niiden takia voit näyttää olevan muualla."},
		"nl": {"De app mag niet worden gebruikt vanaf de plaats waar u bent.", "Gebruik de app vanaf een toegestane plaats. Bent u daar al, zet dan VPN's en reisrouters uit: daardoor kunt u ergens anders lijken te zijn."},
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
		"en": {"The app may not be used at this time.", "Try again within the app's hours, or ask your supervisor."},
		"sv": {"Appen får inte användas vid den här tiden.", "Försök igen inom appens tider, eller fråga din arbetsledare."},
		"nb": {"Appen kan ikke brukes på dette tidspunktet.", "Prøv igjen innenfor appens tider, eller spør lederen din."},
		"da": {"Appen må ikke bruges på dette tidspunkt.", "Prøv igen inden for appens tider, eller spørg din leder."},
		"fi": {"Sovellusta ei saa käyttää tähän aikaan.", "Yritä uudelleen sovelluksen käyttöaikoina tai kysy esihenkilöltäsi."},
		"nl": {"De app mag op dit tijdstip niet worden gebruikt.", "Probeer het opnieuw binnen de tijden van de app, of vraag het aan uw leidinggevende."},
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
		"en": {"Another web page tried to use this app in your name.", "Open the app itself, on its start page. If you did, tell your IT support which page sent you."},
		"sv": {"En annan webbsida försökte använda appen i ditt namn.", "Öppna appen själv, på dess startsida. Om du gjorde det, berätta för din IT-support vilken sida du kom från."},
		"nb": {"En annen nettside prøvde å bruke appen i ditt navn.", "Åpne selve appen, på startsiden dens. Hvis du gjorde det, fortell IT-støtten din hvilken side du kom fra."},
		"da": {"En anden webside forsøgte at bruge appen i dit navn.", "Åbn selve appen på dens startside. Hvis du gjorde det, så fortæl din IT-support, hvilken side du kom fra."},
		"fi": {"Toinen verkkosivu yritti käyttää sovellusta nimissäsi.", "Avaa itse sovellus sen aloitussivulta. Jos teit niin, kerro IT-tuellesi, miltä sivulta tulit."},
		"nl": {"Een andere webpagina probeerde deze app uit uw naam te gebruiken.", "Open de app zelf via zijn startpagina. Deed u dat al, vertel uw IT-ondersteuning dan van welke pagina u kwam."},
	},
	ReasonPolicyUnavailable: {
		"en": {"Your company's rules for access cannot be read right now, so everything is refused.", "Tell your IT support that the gateway has no valid policy files."},
		"sv": {"Ditt företags åtkomstregler kan inte läsas just nu, så allt nekas.", "Meddela din IT-support att gatewayen inte har några giltiga regelfiler."},
		"nb": {"Bedriftens tilgangsregler kan ikke leses akkurat nå, så alt avvises.", "Si fra til IT-støtten din at gatewayen ikke har noen gyldige regelfiler."},
		"da": {"Din virksomheds adgangsregler kan ikke læses lige nu, så alt afvises.", "Fortæl din IT-support, at gatewayen ikke har nogen gyldige regelfiler."},
		"fi": {"Yrityksesi pääsysääntöjä ei voida juuri nyt lukea, joten kaikki estetään.", "Kerro IT-tuellesi, ettei yhdyskäytävällä ole kelvollisia sääntötiedostoja."},
		"nl": {"De toegangsregels van uw bedrijf kunnen nu niet worden gelezen, dus alles wordt geweigerd.", "Meld uw IT-ondersteuning dat de gateway geen geldige beleidsbestanden heeft."},
	},
	ReasonPolicyError: {
		"en": {"Your company's rules for access gave no answer, so access is refused.", "Try again in a moment. If it persists, ask your IT support; tell them the decision's number."},
		"sv": {"Ditt företags åtkomstregler gav inget svar, så åtkomst nekas.", "Försök igen om en stund. Om det kvarstår, fråga din IT-support; ge dem beslutets nummer."},
		"nb": {"Bedriftens tilgangsregler ga ikke noe svar, så tilgangen avvises.", "Prøv igjen om litt. Hvis det vedvarer, spør IT-støtten din; oppgi beslutningens nummer."},
		"da": {"Din virksomheds adgangsregler gav intet svar, så adgangen afvises.", "Prøv igen om lidt. Hvis det fortsætter, så spørg din IT-support; oplys beslutningens nummer."},
		"fi": {"Yrityksesi pääsysäännöt eivät antaneet vastausta, joten pääsy estetään.", "Yritä hetken kuluttua uudelleen. Jos ongelma jatkuu, kysy IT-tuestasi; kerro heille päätöksen numero."},
		"nl": {"De toegangsregels van uw bedrijf gaven geen antwoord, dus de toegang wordt geweigerd.", "Probeer het zo dadelijk opnieuw. Blijft het zo, vraag het dan aan uw IT-ondersteuning; geef het nummer van de beslissing door."},
	},
	ReasonAuditUnavailable: {
		"en": {"The gateway cannot write its log right now, so it lets nothing new through.", "Try again in a few minutes. If it persists, tell your IT support that the gateway cannot write its log."},
		"sv": {"Gatewayen kan inte skriva sin logg just nu, så den släpper inte igenom något nytt.", "Försök igen om några minuter. Om det kvarstår, meddela din IT-support att gatewayen inte kan skriva sin logg."},
		"nb": {"Gatewayen kan ikke skrive loggen sin akkurat nå, så den slipper ikke gjennom noe nytt.", "Prøv igjen om noen minutter. Hvis det vedvarer, si fra til IT-støtten din at gatewayen ikke kan skrive loggen sin."},
		"da": {"Gatewayen kan ikke skrive sin log lige nu, så den lukker intet nyt igennem.", "Prøv igen om nogle minutter. Hvis det fortsætter, så fortæl din IT-support, at gatewayen ikke kan skrive sin log."},
		"fi": {"Yhdyskäytävä ei voi juuri nyt kirjoittaa lokiaan, joten se ei päästä läpi mitään uutta.", "Yritä uudelleen muutaman minuutin kuluttua. Jos ongelma jatkuu, kerro IT-tuellesi, ettei yhdyskäytävä voi kirjoittaa lokiaan."},
		"nl": {"De gateway kan nu niet in zijn logboek schrijven en laat daarom niets nieuws door.", "Probeer het over een paar minuten opnieuw. Blijft het zo, meld uw IT-ondersteuning dan dat de gateway niet in zijn logboek kan schrijven."},
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
		"en": {"The gateway is not allowed to connect to the app's address.", "Ask your IT support to name the address range under the app's `allow`."},
		"sv": {"Gatewayen får inte ansluta till appens adress.", "Be din IT-support att ange adressområdet under appens `allow`."},
		"nb": {"Gatewayen har ikke lov til å koble til appens adresse.", "Be IT-støtten din oppgi adresseområdet under appens `allow`."},
		"da": {"Gatewayen må ikke oprette forbindelse til appens adresse.", "Bed din IT-support om at angive adresseområdet under appens `allow`."},
		"fi": {"Yhdyskäytävä ei saa muodostaa yhteyttä sovelluksen osoitteeseen.", "Pyydä IT-tukeasi nimeämään osoitealue sovelluksen kohdassa `allow`."},
		"nl": {"De gateway mag geen verbinding maken met het adres van de app.", "Vraag uw IT-ondersteuning het adresbereik op te nemen onder `allow` van de app."},
	},
	ReasonBadRequest: {
		"en": {"What was asked of the app can be understood in more than one way, so it was refused.", "Open the app's start page and try again from there. If it persists, ask your IT support."},
		"sv": {"Det som begärdes av appen kan förstås på mer än ett sätt och nekades därför.", "Öppna appens startsida och försök igen därifrån. Om det kvarstår, fråga din IT-support."},
		"nb": {"Det appen ble bedt om, kan forstås på mer enn én måte og ble derfor avvist.", "Åpne appens startside og prøv igjen derfra. Hvis det vedvarer, spør IT-støtten din."},
		"da": {"Det, appen blev bedt om, kan forstås på mere end én måde og blev derfor afvist.", "Åbn appens startside og prøv igen derfra. Hvis det fortsætter, så spørg din IT-support."},
		"fi": {"Se, mitä sovellukselta pyydettiin, voidaan ymmärtää useammalla kuin yhdellä tavalla, joten se evättiin.", "Avaa sovelluksen aloitussivu ja yritä sieltä uudelleen. Jos ongelma jatkuu, kysy IT-tuestasi."},
		"nl": {"Wat van de app werd gevraagd, kan op meer dan één manier worden begrepen en is daarom geweigerd.", "Open de startpagina van de app en probeer het vandaar opnieuw. Blijft het zo, vraag het dan aan uw IT-ondersteuning."},
	},
	ReasonMisdirected: {
		"en": {"The address you opened is not one of this app's.", "Open the app by its own address. You find it with: portvakt-agent apps"},
		"sv": {"Adressen du öppnade är inte en av appens.", "Öppna appen med dess egen adress. Du hittar den med: portvakt-agent apps"},
		"nb": {"Adressen du åpnet, er ikke en av appens.", "Åpne appen med dens egen adresse. Du finner den med: portvakt-agent apps"},
		"da": {"Adressen, du åbnede, er ikke en af appens.", "Åbn appen med dens egen adresse. Du finder den med: portvakt-agent apps"},
		"fi": {"Avaamasi osoite ei ole tämän sovelluksen.", "Avaa sovellus sen omasta osoitteesta. Löydät sen komennolla: portvakt-agent apps"},
		"nl": {"Het adres dat u opende, is niet van deze app.", "Open de app via zijn eigen adres. U vindt het met: portvakt-agent apps"},
	},
	ReasonTooManyFlows: {
		"en": {"This laptop has too many connections open.", "Close windows and programs that you do not need, and try again."},
		"sv": {"Datorn har för många anslutningar öppna.", "Stäng fönster och program som du inte behöver och försök igen."},
		"nb": {"Datamaskinen har for mange tilkoblinger åpne.", "Lukk vinduer og programmer du ikke trenger, og prøv igjen."},
		"da": {"Computeren har for mange forbindelser åbne.", "Luk vinduer og programmer, du ikke har brug for, og prøv igen."},
		"fi": {"Tietokoneessa on liikaa avoimia yhteyksiä.", "Sulje tarpeettomat ikkunat ja ohjelmat ja yritä uudelleen."},
		"nl": {"Deze laptop heeft te veel verbindingen open.", "Sluit vensters en programma's die u niet nodig hebt en probeer het opnieuw."},
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
