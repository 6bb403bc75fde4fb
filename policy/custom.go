package policy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// packagePrefix is the package every hand-written module lies below.
const packagePrefix = "portvakt.custom."

var moduleNameRE = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)

// facts is the shape of the Input as Rego sees it. A leaf with optional set may
// be absent; open leaves have members of their own names.
type facts struct {
	optional bool   // absent when unknown
	open     bool   // members are named by people: signals, claims
	members  facets // nil for a leaf
}

type facets map[string]facts

func plain(names ...string) facets {
	m := facets{}
	for _, n := range names {
		m[n] = facts{}
	}
	return m
}

func (m facets) with(name string, f facts) facets { m[name] = f; return m }

// inputFacts mirrors Input; a test keeps the two equal. A module that names a
// fact which does not exist would be a rule that never refuses.
var inputFacts = facts{
	members: plain("time", "action").
		with("app", facts{members: plain("name", "protocol")}).
		with("device", facts{members: plain("id", "name", "os", "key_tier", "enrolled_at").
			with("serial", facts{optional: true})}).
		with("subject", facts{members: plain("issuer", "sub", "authenticated_at").
			with("groups", facts{open: true}).
			with("name", facts{optional: true}).
			with("email", facts{optional: true}).
			with("claims", facts{optional: true, open: true})}).
		with("ended", facts{optional: true}).
		with("session", facts{members: plain("id", "os_user", "started_at", "expires_at")}).
		with("posture", facts{members: facets{
			"received_at": {optional: true},
			"signals":     {optional: true, open: true},
		}}).
		with("location", facts{members: facets{
			"address": {optional: true},
			"country": {optional: true},
		}}).
		with("request", facts{members: plain("method", "host", "path", "upgrade")}).
		with("flow", facts{members: plain("port")}),
}

// customModule checks one parsed module. seen maps module names to the file
// that has them.
func customModule(path string, m *ast.Module, seen map[string]string, opt LoadOptions) Problems {
	c := &moduleCheck{path: path, opt: opt}
	name, ok := strings.CutPrefix(strings.TrimPrefix(m.Package.Path.String(), "data."), packagePrefix)
	switch {
	case !ok || !moduleNameRE.MatchString(name):
		c.fail(m.Package.Location, "package", "wanted package %sNAME (lower-case letters, digits and _), found package %s", packagePrefix, strings.TrimPrefix(m.Package.Path.String(), "data."))
	case seen[name] != "":
		c.fail(m.Package.Location, "package", "wanted a name of its own, but %s has the same package", seen[name])
	default:
		seen[name] = path
	}
	for _, imp := range m.Imports {
		root := imp.Path.String()
		if root != "rego.v1" && !strings.HasPrefix(root, "future.keywords") && !strings.HasPrefix(root, "data.") {
			c.fail(imp.Location, "import", "wanted no import of %s; write facts out in full, such as input.location.country, so that what a rule depends on can be seen", root)
		}
	}
	hasDeny := false
	for _, rule := range m.Rules {
		switch rule.Head.Ref()[0].Value.String() {
		case "deny":
			hasDeny = true
			if rule.Head.RuleKind() != ast.MultiValue || len(rule.Head.Ref()) != 1 || rule.Default {
				c.fail(rule.Location, "deny", `wanted "deny contains {"message": ...} if { ... }"`)
			}
		case "absent":
			c.absentRule(rule)
		}
	}
	if !hasDeny {
		c.fail(m.Package.Location, "deny", `missing; a module that refuses nothing takes no part. Wanted "deny contains {"message": ...} if { ... }"`)
	}
	c.uses(m)
	return c.problems
}

type moduleCheck struct {
	path     string
	opt      LoadOptions
	absent   map[string]string // as the module declares it
	problems Problems
	said     map[string]bool // "line fact" that has a Problem
}

func (c *moduleCheck) fail(at *ast.Location, key, format string, args ...any) {
	p := Problem{File: c.path, Key: key, Text: fmt.Sprintf(format, args...)}
	if at != nil {
		p.Line = at.Row
	}
	c.problems = append(c.problems, p)
}

// absentRule reads `absent := {PATH: "deny" | "ignore"}`.
func (c *moduleCheck) absentRule(rule *ast.Rule) {
	const wanted = `wanted one constant object such as absent := {"location.country": "deny"}`
	object, ok := ast.Object(nil), false
	if rule.Head.Value != nil {
		object, ok = rule.Head.Value.Value.(ast.Object)
	}
	body := len(rule.Body) == 1 && rule.Body[0].Equal(ast.NewExpr(ast.BooleanTerm(true)))
	if !ok || !body || rule.Else != nil || rule.Default || len(rule.Head.Args) > 0 || len(rule.Head.Ref()) != 1 || c.absent != nil {
		c.fail(rule.Location, "absent", wanted)
		return
	}
	c.absent = map[string]string{}
	object.Foreach(func(k, v *ast.Term) {
		path, pathOK := k.Value.(ast.String)
		what, whatOK := v.Value.(ast.String)
		switch {
		case !pathOK || !whatOK || what != "deny" && what != "ignore":
			c.fail(k.Location, "absent", `wanted "deny" or "ignore" for every fact, found %s: %s`, k, v)
		case !optionalFact(string(path)):
			c.fail(k.Location, "absent", "wanted a fact that may be absent (%s), found %q", strings.Join(optionalFacts, ", "), string(path))
		default:
			c.absent[string(path)] = string(what)
		}
	})
}

// optionalFacts are the facts that may be absent, as `absent` names them.
var optionalFacts = []string{
	"device.serial", "location.address", "location.country", "posture.received_at",
	"posture.signals", "posture.signals.NAME", "subject.claims", "subject.claims.NAME", "subject.email", "subject.name",
}

func optionalFact(path string) bool {
	if name, ok := strings.CutPrefix(path, "posture.signals."); ok {
		return slices.Contains(Signals, name)
	}
	if name, ok := strings.CutPrefix(path, "subject.claims."); ok {
		return name != ""
	}
	return slices.Contains(optionalFacts, path)
}

// uses walks every reference to input and data, and every `with`.
func (c *moduleCheck) uses(m *ast.Module) {
	c.said = map[string]bool{}
	var visit func(x any) bool
	visit = func(x any) bool {
		switch x := x.(type) {
		case *ast.Import, *ast.Package:
			return true
		case *ast.With:
			c.fail(x.Location, "with", "wanted no `with`; a module judges the facts as they are")
			return true
		case *ast.Term:
			switch v := x.Value.(type) {
			case ast.String:
				if v == "Local" {
					c.fail(x.Location, "", `wanted a time zone by its name; "Local" makes a decision depend on the machine`)
				}
			case ast.Var:
				if v.Equal(ast.InputRootDocument.Value) || v.Equal(ast.DefaultRootDocument.Value) {
					c.root(x.Location, ast.Ref{x})
				}
			case ast.Ref:
				if v[0].Equal(ast.InputRootDocument) || v[0].Equal(ast.DefaultRootDocument) {
					c.root(x.Location, v)
					for _, t := range v[1:] {
						ast.NewGenericVisitor(visit).Walk(t)
					}
					return true
				}
			}
		}
		return false
	}
	for _, rule := range m.Rules {
		ast.NewGenericVisitor(visit).Walk(rule)
	}
}

func (c *moduleCheck) root(at *ast.Location, ref ast.Ref) {
	if at == nil {
		at = ref[0].Location
	}
	if ref[0].Equal(ast.DefaultRootDocument) {
		s := ref.String()
		own := strings.HasPrefix(s, "data."+packagePrefix) || strings.HasPrefix(s, "data.portvakt_catalogue.")
		if !own {
			c.fail(at, "data", "wanted data.%sNAME or data.portvakt_catalogue, found %s", packagePrefix, s)
		}
		return
	}
	c.fact(at, ref)
}

// fact checks one reference to input: every fact that may be absent and that
// the reference can see must be in `absent`.
func (c *moduleCheck) fact(at *ast.Location, ref ast.Ref) {
	node, path := inputFacts, ""
	for _, t := range ref[1:] {
		if node.members == nil && !node.open {
			break // below a leaf: a string's member, which Rego itself refuses
		}
		key, constant := t.Value.(ast.String)
		if !constant {
			break
		}
		if node.open {
			if path == "posture.signals" && !slices.Contains(Signals, string(key)) {
				c.fail(at, "input", "no such signal: %s; the signals are %s", key, strings.Join(Signals, ", "))
				return
			}
			path, node = join(path, string(key)), facts{optional: node.optional}
			continue
		}
		next, ok := node.members[string(key)]
		if !ok {
			c.fail(at, "input", "no such fact: %s; there are %s", ref, strings.Join(slices.Sorted(maps.Keys(node.members)), ", "))
			return
		}
		path, node = join(path, string(key)), next
	}
	if path == "" {
		c.fail(at, "input", "wanted one fact by its name, such as input.location.country, found %s", ref)
		return
	}
	for _, fact := range node.below(path) {
		c.declared(at, fact)
	}
	if claim, ok := strings.CutPrefix(path, "subject.claims."); ok {
		c.kept(at, claim)
	}
}

// kept refuses a claim that no login brings.
func (c *moduleCheck) kept(at *ast.Location, claim string) {
	fact := "subject.claims." + claim
	said := fmt.Sprintf("%d kept %s", at.Row, fact)
	if !c.opt.CheckClaims || slices.Contains(c.opt.KeptClaims, claim) || c.said[said] {
		return
	}
	c.said[said] = true
	so := "so a rule about it never refuses"
	if c.absent[fact] == "deny" {
		so = `so it is absent for everyone, which "deny" refuses`
	}
	c.fail(at, "input."+fact, "identity.keep_claims of gateway.yaml does not keep this claim, %s; write there: keep_claims: [%s]", so, strings.Join(append(slices.Clone(c.opt.KeptClaims), claim), ", "))
}

// below returns the facts at or below path that may be absent.
func (f facts) below(path string) []string {
	if f.optional {
		return []string{path}
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(f.members)) {
		out = append(out, f.members[name].below(join(path, name))...)
	}
	return out
}

func (c *moduleCheck) declared(at *ast.Location, fact string) {
	if _, ok := c.absent[fact]; ok {
		return
	}
	said := fmt.Sprintf("%d %s", at.Row, fact)
	if c.said[said] {
		return
	}
	c.said[said] = true
	c.fail(at, "input."+fact, `the fact may be absent, and a rule about it would then not refuse; say what absence means: absent := {%q: "deny"} (or "ignore")`, fact)
}
