package policy

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
)

// remembering knows what of a Question a Revision's grants depend on, so that a
// grant can be given again without evaluating. Given the same Facts, the
// shipped modules (a test reads them for what they refer to) look at
//
//   - app, action, port, method and upgrade: compared as they are;
//   - the path, by the matchers of the app's access rules and nothing else: the
//     same matchers are asked here which rules it satisfies;
//   - the time, by the years moment reads, by the Session's end, and by weekday
//     and minute in the zones of the app's hours: all asked here as well;
//   - the host: not at all.
//
// Custom modules may look at anything and cannot call the shipped ones. What
// they refer to is read off their compiled form.
type remembering struct {
	never      bool // a custom module reads the time, or more than can be told
	host, path bool // a custom module reads these
	apps       map[string]appClasses
}

// appClasses sorts the paths and times of one app into classes that its access
// rules cannot tell apart.
type appClasses struct {
	rules []pathClass
	zones []*time.Location
}

type pathClass struct {
	matchData
	patterns []*regexp.Regexp
}

// Bounds of what fits an asked.
const (
	maxPathRules = 64
	maxZones     = 4
)

func newRemembering(apps []App, compiled map[string]*ast.Module, custom func(name string) bool) remembering {
	m := remembering{apps: map[string]appClasses{}}
	for name, module := range compiled {
		if custom(name) {
			m.reads(module)
		}
	}
	for _, a := range apps {
		if c, ok := newAppClasses(a); ok {
			m.apps[a.Name] = c
		}
	}
	return m
}

// newAppClasses reports false for an app whose classes cannot be told: each of
// its Questions is evaluated.
func newAppClasses(a App) (appClasses, bool) {
	var c appClasses
	if len(a.Access) > maxPathRules {
		return c, false
	}
	var names []string
	for _, rule := range a.Access {
		p := pathClass{matchData: matcher(rule.Paths)}
		for _, text := range p.Patterns {
			re, err := regexp.Compile(text)
			if err != nil {
				return c, false
			}
			p.patterns = append(p.patterns, re)
		}
		c.rules = append(c.rules, p)
		if h := rule.Hours; h != nil && !slices.Contains(names, h.Zone) {
			zone, err := time.LoadLocation(h.Zone)
			if err != nil || len(names) == maxZones {
				return c, false
			}
			names, c.zones = append(names, h.Zone), append(c.zones, zone)
		}
	}
	return c, true
}

// reads notes what a custom module refers to of what varies between Questions.
// It must err on the side of too much.
func (m *remembering) reads(module *ast.Module) {
	ast.WalkTerms(module, func(t *ast.Term) bool {
		switch v := t.Value.(type) {
		case ast.Var:
			if v.Equal(ast.InputRootDocument.Value) {
				m.never = true // the whole of it
			}
		case ast.Ref:
			if len(v) == 0 || !v[0].Equal(ast.InputRootDocument) {
				return false
			}
			m.readsInput(v)
			for _, part := range v[1:] {
				ast.WalkTerms(part, func(t *ast.Term) bool { m.readsTerm(t); return false })
			}
			return true // its first term is the input itself, and no news
		}
		return false
	})
}

// readsTerm is for terms inside a reference, such as posture.signals[input.x].
func (m *remembering) readsTerm(t *ast.Term) {
	if v, ok := t.Value.(ast.Ref); ok && len(v) > 0 && v[0].Equal(ast.InputRootDocument) {
		m.never = true // nobody writes it; not worth telling apart
	}
	if t.Equal(ast.InputRootDocument) {
		m.never = true
	}
}

func (m *remembering) readsInput(ref ast.Ref) {
	member := func(i int) string {
		if i >= len(ref) {
			return ""
		}
		s, _ := ref[i].Value.(ast.String)
		return string(s)
	}
	switch member(1) {
	case "action", "app", "device", "subject", "session", "ended", "posture", "location", "flow":
	case "request":
		switch member(2) {
		case "method", "upgrade":
		case "path":
			m.path = true
		case "host":
			m.host = true
		default:
			m.path, m.host = true, true
		}
	default: // the time, or what cannot be told
		m.never = true
	}
}

// key sorts q. It reports false when the answer must be evaluated.
func (m *remembering) key(f *Facts, q Question) (asked, bool) {
	classes, known := m.apps[q.App.Name]
	if m.never || !known || f.err != nil || f.in.Session == nil || !q.ordinary() {
		return asked{}, false
	}
	// Rego's in_force and moment, on the wall clock that its texts have.
	at := q.Time.Round(0)
	if y := at.Year(); y < 1900 || y >= 2200 || at.Location() != time.UTC || !at.Before(f.in.Session.ExpiresAt.Round(0)) {
		return asked{}, false
	}
	k := asked{app: q.App.Name, protocol: q.App.Protocol, action: q.Action}
	for i, zone := range classes.zones {
		local := at.In(zone)
		h, min, _ := local.Clock()
		k.clock |= uint64(int(local.Weekday())*24*60+h*60+min) << (16 * i)
	}
	if q.Flow != nil {
		k.port = q.Flow.Port
	}
	if r := q.Request; r != nil {
		k.method, k.upgrade = r.Method, r.Upgrade
		for i, p := range classes.rules {
			if p.match(r.Path) {
				k.paths |= 1 << i
			}
		}
		if m.path || !strings.HasPrefix(r.Path, "/") {
			k.path = r.Path
		}
		if m.host {
			k.host = r.Host
		}
	}
	return k, true
}

// match is path_allowed of access.rego, but for a rule without paths.
func (p pathClass) match(path string) bool {
	return slices.Contains(p.Exact, path) ||
		slices.ContainsFunc(p.Prefixes, func(prefix string) bool { return strings.HasPrefix(path, prefix) }) ||
		slices.ContainsFunc(p.patterns, func(re *regexp.Regexp) bool { return re.MatchString(path) })
}
