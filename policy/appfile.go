package policy

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// Signals are the posture signals an access rule can ask for: those that
// agents report. A test keeps them equal to the protocol's.
var Signals = []string{
	"disk_encryption", "host_firewall", "screen_lock",
	"os_updates", "anti_malware", "remote_control",
}

// gatewayHost is the name agents know the gateway by. An app of that name
// could pass for the gateway.
const gatewayHost = "gateway.portvakt.internal"

var (
	appKeys = []string{
		"name", "title", "protocol", "hosts", "upstream", "upstream_ca_file", "upstream_cert_file", "upstream_key_file", "ports", "allow",
		"visibility", "dscp", "durability", "websocket", "origins", "cross_site",
		"encoded_slash", "path_parameters", "on_loss", "access",
	}
	ruleKeys = []string{
		"anyone", "groups", "subjects", "posture", "countries", "not_countries", "hours", "methods", "paths",
	}
	hoursKeys = []string{"days", "from", "to", "zone"}
	weekdays  = []string{"mon", "tue", "wed", "thu", "fri", "sat", "sun"}

	labelRE   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	numericRE = regexp.MustCompile(`^[0-9]+$`)
	methodRE  = regexp.MustCompile(`^[A-Z][A-Z-]{0,31}$`)
	countryRE = regexp.MustCompile(`^[A-Z]{2}$`)
	clockRE   = regexp.MustCompile(`^([01][0-9]|2[0-3]):[0-5][0-9]$`)
	zoneRE    = regexp.MustCompile(`^[A-Za-z0-9+_-]+(/[A-Za-z0-9+_-]+)*$`)
)

// parseApp decodes one file of the catalogue, and says on which line each key
// is. The App is only good when there are no Problems.
func parseApp(path string, src []byte) (app App, lines map[string]int, problems Problems) {
	f := &yamlFile{path: path}
	body := f.parse(src)
	if body == nil {
		return App{}, nil, f.problems
	}
	fields := f.mapping(body, "", appKeys)
	if fields == nil {
		return App{}, nil, f.problems
	}
	lines = make(map[string]int, len(fields))
	for key, fd := range fields {
		lines[key] = lineOf(fd.key)
	}
	f.appWords(&app, fields, body)
	if !slices.Contains([]string{ProtocolHTTP, ProtocolTCP, ProtocolUDP}, app.Protocol) {
		return App{}, nil, f.problems // what follows depends on it
	}
	f.appAddress(&app, fields, body)
	f.appWeb(&app, fields)
	if fd, ok := fields["on_loss"]; ok {
		app.OnLoss = f.onLoss(fd)
	}
	if fd, ok := fields["access"]; ok {
		f.access(&app, fd)
	}
	fillApp(&app)
	return app, lines, f.problems
}

// appWords reads what names and presents the app.
func (f *yamlFile) appWords(app *App, fields map[string]field, body ast.Node) {
	app.Name = f.required(fields, body, "name", func(s string) string {
		if !labelRE.MatchString(s) {
			return "lower-case letters, digits and inner dashes, at most 63"
		}
		return ""
	})
	if fd, ok := fields["title"]; ok {
		app.Title = f.checked(fd, func(s string) string {
			if len([]rune(s)) > 100 {
				return "at most 100 characters"
			}
			return ""
		})
	}
	app.Protocol = f.required(fields, body, "protocol", oneOf(ProtocolHTTP, ProtocolTCP, ProtocolUDP))
	app.Visibility = VisibilityExplain
	if app.Protocol != ProtocolHTTP {
		app.Visibility = VisibilityHidden
	}
	if fd, ok := fields["visibility"]; ok {
		app.Visibility = f.checked(fd, oneOf(VisibilityExplain, VisibilityHidden))
	}
	app.Durability = DurabilityKill
	if fd, ok := fields["durability"]; ok {
		app.Durability = f.checked(fd, oneOf(DurabilityKill, DurabilityStrict))
	}
}

// appAddress reads where the app is: its names, ports and upstream.
func (f *yamlFile) appAddress(app *App, fields map[string]field, body ast.Node) {
	if fd, ok := fields["hosts"]; ok {
		app.Hosts = f.texts(fd, checkHost)
	} else if app.Protocol == ProtocolHTTP {
		f.fail(body, "hosts", "wanted at least one host name; an http app is reached by its names")
	}
	check := checkURL
	if app.Protocol != ProtocolHTTP {
		check = checkHostPort
	}
	app.Upstream = f.required(fields, body, "upstream", check)
	f.appTLS(app, fields)
	f.appPorts(app, fields, body)
	f.appDSCP(app, fields)
	if fd, ok := fields["allow"]; ok {
		for _, s := range f.texts(fd, checkPrefix) {
			app.Allow = append(app.Allow, netip.MustParsePrefix(s))
		}
	}
}

// appTLS reads the files of an https upstream.
func (f *yamlFile) appTLS(app *App, fields map[string]field) {
	for _, file := range []struct {
		key string
		to  *string
	}{{"upstream_ca_file", &app.UpstreamCAFile}, {"upstream_cert_file", &app.UpstreamCertFile}, {"upstream_key_file", &app.UpstreamKeyFile}} {
		if fd, ok := fields[file.key]; ok {
			*file.to = f.checked(fd, func(s string) string {
				switch {
				case !strings.HasPrefix(app.Upstream, "https://"):
					return "no such key, because only an https:// upstream has certificates"
				case !filepath.IsAbs(s) || filepath.Clean(s) != s:
					return "an absolute path"
				}
				return ""
			})
		}
	}
	cert, hasCert := fields["upstream_cert_file"]
	key, hasKey := fields["upstream_key_file"]
	switch {
	case hasCert && !hasKey:
		f.fail(cert.key, cert.path, "wanted upstream_key_file beside it")
	case hasKey && !hasCert:
		f.fail(key.key, key.path, "wanted upstream_cert_file beside it")
	}
}

func (f *yamlFile) appPorts(app *App, fields map[string]field, body ast.Node) {
	fd, given := fields["ports"]
	if app.Protocol == ProtocolHTTP {
		if given {
			f.fail(fd.key, fd.path, "not for protocol http, which always has ports 443 and 80")
		}
		app.Ports = []uint16{443, 80}
		return
	}
	if !given {
		f.fail(body, "ports", "wanted the ports of the app's own address, for example [5432]")
		return
	}
	app.Ports = f.ports(fd)
	if _, _, err := net.SplitHostPort(app.Upstream); err == nil && len(app.Ports) > 1 {
		f.fail(fd.value, fd.path, "wanted exactly one port, because upstream %q names one, found %d", app.Upstream, len(app.Ports))
	}
}

// appDSCP reads what only udp apps have.
func (f *yamlFile) appDSCP(app *App, fields map[string]field) {
	fd, given := fields["dscp"]
	switch {
	case app.Protocol == ProtocolUDP && given:
		app.DSCP = f.checked(fd, oneOf(DSCPAuto, DSCPOff))
	case app.Protocol == ProtocolUDP:
		app.DSCP = DSCPAuto
	case given:
		f.fail(fd.key, fd.path, "only for protocol udp, this app has %s", app.Protocol)
	}
}

// appWeb reads what only http apps have.
func (f *yamlFile) appWeb(app *App, fields map[string]field) {
	for _, key := range []string{"websocket", "origins", "cross_site", "encoded_slash", "path_parameters"} {
		if fd, ok := fields[key]; ok && app.Protocol != ProtocolHTTP {
			f.fail(fd.key, fd.path, "only for protocol http, this app has %s", app.Protocol)
			delete(fields, key)
		}
	}
	if fd, ok := fields["websocket"]; ok {
		app.WebSocket = f.flag(fd)
	}
	if fd, ok := fields["origins"]; ok {
		app.Origins = f.texts(fd, checkOrigin)
	}
	if app.Protocol == ProtocolHTTP {
		app.EncodedSlash = f.refuseOrKeep(fields, "encoded_slash")
		app.PathParameters = f.refuseOrKeep(fields, "path_parameters")
	}
	if fd, ok := fields["cross_site"]; ok {
		app.CrossSite = f.texts(fd, patternOf(app))
	}
}

func (f *yamlFile) refuseOrKeep(fields map[string]field, key string) string {
	if fd, ok := fields[key]; ok {
		return f.checked(fd, oneOf(URLRefuse, URLKeep))
	}
	return URLRefuse
}

func (f *yamlFile) access(app *App, fd field) {
	elements, ok := fd.value.(*ast.SequenceNode)
	if !ok {
		f.fail(fd.value, fd.path, "wanted a list of rules, found %s", describe(fd.value))
		return
	}
	for i, e := range elements.Values {
		path := fmt.Sprintf("%s[%d]", fd.path, i)
		fields := f.mapping(e, path, ruleKeys)
		if fields == nil {
			continue
		}
		rule := Rule{}
		f.ruleWho(&rule, fields, e, path)
		f.ruleWhere(&rule, fields)
		if hours, ok := fields["hours"]; ok {
			rule.Hours = f.hours(hours)
		}
		for _, key := range []string{"methods", "paths"} {
			if fd, ok := fields[key]; ok && app.Protocol != ProtocolHTTP {
				f.fail(fd.key, fd.path, "only for protocol http, this app has %s", app.Protocol)
				delete(fields, key)
			}
		}
		if fd, ok := fields["methods"]; ok {
			rule.Methods = f.texts(fd, func(s string) string {
				if !methodRE.MatchString(s) || s == "CONNECT" {
					return "an HTTP method in capitals, such as GET, and not CONNECT"
				}
				return ""
			})
		}
		if fd, ok := fields["paths"]; ok {
			rule.Paths = f.texts(fd, patternOf(app))
		}
		app.Access = append(app.Access, rule)
	}
}

// ruleWho reads whom a rule is for. A rule that says nothing about it is
// refused: nothing is open by forgetting.
func (f *yamlFile) ruleWho(rule *Rule, fields map[string]field, n ast.Node, path string) {
	anyone, hasAnyone := fields["anyone"]
	groups, hasGroups := fields["groups"]
	subjects, hasSubjects := fields["subjects"]
	if !hasAnyone && !hasGroups && !hasSubjects {
		f.fail(n, path, "wanted groups, subjects or `anyone: true`; a rule says whom it is for")
		return
	}
	if hasAnyone {
		rule.Anyone = f.flag(anyone)
		switch {
		case !rule.Anyone:
			f.fail(anyone.value, anyone.path, "wanted true, or the key left out")
		case hasGroups || hasSubjects:
			f.fail(anyone.key, anyone.path, "wanted either anyone or groups and subjects, found both")
		}
	}
	if hasGroups {
		rule.Groups = f.texts(groups, func(string) string { return "" })
	}
	if hasSubjects {
		rule.Subjects = f.texts(subjects, func(s string) string {
			if issuer, sub, ok := strings.Cut(s, "#"); !ok || issuer == "" || sub == "" {
				return `ISSUER#SUB in quotes, such as "https://login.example.com#00u1"`
			}
			return ""
		})
	}
}

// ruleWhere reads the conditions on the device and its place.
func (f *yamlFile) ruleWhere(rule *Rule, fields map[string]field) {
	if fd, ok := fields["posture"]; ok {
		rule.Posture = map[string]string{}
		signals := f.mapping(fd.value, fd.path, Signals)
		if signals != nil && len(signals) == 0 && len(f.problems) == 0 {
			f.fail(fd.value, fd.path, "wanted at least one signal; leave the key out if none is needed")
		}
		for _, name := range Signals {
			if signal, ok := signals[name]; ok {
				rule.Posture[name] = f.checked(signal, oneOf("pass"))
			}
		}
	}
	countries, hasCountries := fields["countries"]
	not, hasNot := fields["not_countries"]
	if hasCountries && hasNot {
		f.fail(not.key, not.path, "wanted either countries or not_countries, found both")
	}
	check := func(s string) string {
		if !countryRE.MatchString(s) {
			return "a country code of two capitals (ISO 3166-1 alpha-2), such as SE"
		}
		return ""
	}
	if hasCountries {
		rule.Countries = f.texts(countries, check)
	}
	if hasNot {
		rule.NotCountries = f.texts(not, check)
	}
}

func (f *yamlFile) hours(fd field) *Hours {
	fields := f.mapping(fd.value, fd.path, hoursKeys)
	if fields == nil {
		return nil
	}
	h := &Hours{Days: slices.Clone(weekdays)}
	if days, ok := fields["days"]; ok {
		named := f.texts(days, oneOf(weekdays...))
		h.Days = slices.DeleteFunc(h.Days, func(d string) bool { return !slices.Contains(named, d) })
	}
	h.From = f.requiredAt(fields, fd, "from", func(s string) string {
		if !clockRE.MatchString(s) {
			return "a time HH:MM from 00:00 to 23:59"
		}
		return ""
	})
	h.To = f.requiredAt(fields, fd, "to", func(s string) string {
		switch {
		case s != "24:00" && !clockRE.MatchString(s):
			return "a time HH:MM from 00:00 to 24:00"
		case s == h.From:
			return "another time than from; the whole day is from 00:00 to 24:00"
		}
		return ""
	})
	h.Zone = f.requiredAt(fields, fd, "zone", func(s string) string {
		// "Local" would make a decision depend on the machine.
		if _, err := time.LoadLocation(s); err != nil || s == "Local" || !zoneRE.MatchString(s) {
			return "an IANA time zone, such as Europe/Stockholm or UTC"
		}
		return ""
	})
	return h
}

func (f *yamlFile) requiredAt(fields map[string]field, parent field, key string, check func(string) string) string {
	fd, ok := fields[key]
	if !ok {
		f.fail(parent.key, join(parent.path, key), "missing; wanted %s", strings.Join(hoursKeys[1:], ", "))
		return ""
	}
	return f.checked(fd, check)
}

func (f *yamlFile) required(fields map[string]field, body ast.Node, key string, check func(string) string) string {
	fd, ok := fields[key]
	if !ok {
		f.fail(body, key, "missing; every app has one")
		return ""
	}
	return f.checked(fd, check)
}

// checked returns a text that passes check, or "" after a Problem.
func (f *yamlFile) checked(fd field, check func(string) string) string {
	s, ok := f.text(fd.value, fd.path)
	if !ok {
		return ""
	}
	if wanted := check(s); wanted != "" {
		f.fail(fd.value, fd.path, "wanted %s, found %q", wanted, s)
		return ""
	}
	return s
}

// fillApp sets the defaults and makes every list an empty one, so that Rego
// never meets null.
func fillApp(app *App) {
	if app.Title == "" {
		app.Title = app.Name
	}
	for _, list := range []*[]string{&app.Hosts, &app.Origins, &app.CrossSite} {
		fillList(list)
	}
	if app.Allow == nil {
		app.Allow = []netip.Prefix{}
	}
	if app.Access == nil {
		app.Access = []Rule{}
	}
	for i := range app.Access {
		r := &app.Access[i]
		for _, list := range []*[]string{&r.Groups, &r.Subjects, &r.Countries, &r.NotCountries, &r.Methods, &r.Paths} {
			fillList(list)
		}
		if r.Posture == nil {
			r.Posture = map[string]string{}
		}
	}
}

func fillList(list *[]string) {
	if *list == nil {
		*list = []string{}
	}
}
