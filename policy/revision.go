package policy

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
)

// The tests beside the modules stay out: they are no part of any Revision.
//
//go:embed rego/access.rego rego/custom.rego rego/decision.rego
var shipped embed.FS

// query is the entrypoint of every Revision, also in its bundle.
const query = "data.portvakt.decision"

// LoadOptions say how Load reads a directory.
type LoadOptions struct {
	// CheckOwner refuses a directory or file that belongs to neither this
	// process's user nor root, or that group or others may write.
	CheckOwner bool
	// CheckClaims refuses a module that names a claim of the login which is not
	// among KeptClaims: it would be absent for everyone, and a rule about it
	// would never refuse.
	CheckClaims bool
	KeptClaims  []string
}

// Revision is one state of the whole policy: the catalogue, the shipped Rego
// and the custom modules, compiled. It never changes.
type Revision struct {
	id    string
	apps  []App
	files []bundleFile // in bundle order, without the manifest
	query rego.PreparedEvalQuery
	// remember says which Questions are the same to it.
	remember remembering
	shared   *shared
	// places say in which file and line each app's keys are.
	places map[string]place
}

// place is where an app was read from.
type place struct {
	file  string
	lines map[string]int // by key of the app
}

// bundleFile is one file of a Revision's OPA bundle.
type bundleFile struct {
	name string
	data []byte
}

// ID is a hash of everything in the Revision that can change a Decision or
// what is done with it: comments and spelling in YAML files do not count.
func (r *Revision) ID() string { return r.id }

// Apps returns the catalogue, by name. The caller must not change it.
func (r *Revision) Apps() []App { return r.apps }

// App returns the app of that name.
func (r *Revision) App(name string) (App, bool) {
	i, ok := slices.BinarySearchFunc(r.apps, name, func(a App, n string) int { return strings.Compare(a.Name, n) })
	if !ok {
		return App{}, false
	}
	return r.apps[i], true
}

// Problem says what is wrong with a key of an app, for what only the caller can
// judge.
func (r *Revision) Problem(app, key, text string) Problem {
	at := r.places[app]
	return Problem{File: at.file, Line: at.lines[key], Key: key, Text: text}
}

// Load reads dir (*.yaml and *.yml: one app a file; *.rego: custom modules) and
// compiles it. What is wrong with the files comes back as [Problems].
func Load(dir string, opt LoadOptions) (*Revision, error) {
	files, err := readDir(dir, opt.CheckOwner)
	if err != nil {
		return nil, err
	}
	return build(files, opt)
}

// build makes a Revision of files, which are sorted by name.
func build(files []sourceFile, opt LoadOptions) (*Revision, error) {
	var problems Problems
	modules, err := shippedModules()
	if err != nil {
		return nil, err
	}
	r := &Revision{places: map[string]place{}}
	owners := map[string]string{} // app or host -> file
	names := map[string]string{}  // custom module -> file
	for _, f := range files {
		if f.rego() {
			m, more := parseModule(f, names, opt)
			problems = append(problems, more...)
			if len(more) == 0 {
				modules[f.path] = m
				r.files = append(r.files, bundleFile{name: "portvakt/custom/" + f.name, data: f.data})
			}
			continue
		}
		app, lines, more := parseApp(f.path, f.data)
		problems = append(problems, more...)
		if len(more) > 0 {
			continue
		}
		problems = append(problems, claim(owners, f, app)...)
		r.apps = append(r.apps, app)
		r.places[app.Name] = place{f.path, lines}
	}
	if len(problems) > 0 {
		return nil, problems
	}
	slices.SortFunc(r.apps, func(a, b App) int { return strings.Compare(a.Name, b.Name) })
	if err := r.compile(modules); err != nil {
		return nil, err
	}
	return r, nil
}

// claim notes the names an app takes; each may be taken once.
func claim(owners map[string]string, f sourceFile, app App) Problems {
	var problems Problems
	take := func(key, what, text string) {
		if other, taken := owners[what+" "+text]; taken {
			problems = append(problems, Problem{File: f.path, Line: lineWith(f.data, text), Key: key, Text: fmt.Sprintf("wanted a %s of its own, but %s has %q already", what, other, text)})
			return
		}
		owners[what+" "+text] = f.path
	}
	take("name", "name", app.Name)
	for i, h := range app.Hosts {
		take(fmt.Sprintf("hosts[%d]", i), "host", h)
	}
	return problems
}

// lineWith finds the line of a text that is known to be in src.
func lineWith(src []byte, text string) int {
	loc := regexp.MustCompile(`(?m)(^|[\s'"\[,])` + regexp.QuoteMeta(text) + `($|[\s'"\],])`).FindIndex(src)
	if loc == nil {
		return 0
	}
	return 1 + strings.Count(string(src[:loc[1]-1]), "\n")
}

func parserOptions() ast.ParserOptions {
	return ast.ParserOptions{Capabilities: Capabilities(), RegoVersion: ast.RegoV1}
}

// parseModule parses and checks one custom module.
func parseModule(f sourceFile, names map[string]string, opt LoadOptions) (*ast.Module, Problems) {
	m, err := ast.ParseModuleWithOpts(f.path, string(f.data), parserOptions())
	if err != nil {
		return nil, regoProblems(f.path, err)
	}
	return m, customModule(f.path, m, names, opt)
}

func shippedModules() (map[string]*ast.Module, error) {
	modules := map[string]*ast.Module{}
	names, err := fs.Glob(shipped, "rego/*.rego")
	if err != nil {
		return nil, fmt.Errorf("reading shipped policy: %w", err)
	}
	for _, name := range names {
		src, err := shipped.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("reading shipped policy: %w", err)
		}
		m, err := ast.ParseModuleWithOpts(name, string(src), parserOptions())
		if err != nil {
			return nil, fmt.Errorf("parsing shipped policy: %w", err)
		}
		modules[name] = m
	}
	return modules, nil
}

// regoProblems turns OPA's errors into Problems. path is for those without a
// location.
func regoProblems(path string, err error) Problems {
	var list ast.Errors
	if !errors.As(err, &list) {
		return Problems{{File: path, Text: "wanted Rego: " + err.Error()}}
	}
	var problems Problems
	for _, e := range list {
		p := Problem{File: path, Text: "wanted Rego that compiles: " + e.Message}
		if e.Location != nil && e.Location.File != "" {
			p.File, p.Line = e.Location.File, e.Location.Row
		}
		problems = append(problems, p)
	}
	return problems
}

// compile prepares r for evaluation and gives it its ID.
func (r *Revision) compile(modules map[string]*ast.Module) error {
	data, err := json.Marshal(catalogue(r.apps))
	if err != nil {
		return fmt.Errorf("compiling policy: %w", err)
	}
	r.files = append(r.files, bundleFile{name: "data.json", data: data})
	names, err := fs.Glob(shipped, "rego/*.rego")
	if err != nil {
		return fmt.Errorf("compiling policy: %w", err)
	}
	for _, name := range names {
		src, err := shipped.ReadFile(name)
		if err != nil {
			return fmt.Errorf("compiling policy: %w", err)
		}
		r.files = append(r.files, bundleFile{name: "portvakt/" + path.Base(name), data: src})
	}
	slices.SortFunc(r.files, func(a, b bundleFile) int { return strings.Compare(a.name, b.name) })
	r.id = contentID(r.files)

	compiler := ast.NewCompiler().WithCapabilities(Capabilities()).WithDefaultRegoVersion(ast.RegoV1)
	if compiler.Compile(modules); compiler.Failed() {
		return regoProblems("rego", compiler.Errors)
	}
	var document map[string]any
	if err := json.Unmarshal(data, &document); err != nil {
		return fmt.Errorf("compiling policy: %w", err)
	}
	r.query, err = rego.New(
		rego.Query(query),
		rego.Compiler(compiler),
		rego.Store(inmem.NewFromObjectWithOpts(document, inmem.OptReturnASTValuesOnRead(true))),
		rego.Capabilities(Capabilities()),
		// A failing built-in must not make a denial vanish.
		rego.StrictBuiltinErrors(true),
	).PrepareForEval(context.Background())
	if err != nil {
		return fmt.Errorf("compiling policy: %w", err)
	}
	r.shared = newShared(r.apps, len(compiler.Modules) > len(names))
	r.remember = newRemembering(r.apps, compiler.Modules, func(name string) bool { return !slices.Contains(names, name) })
	return r.tryOut()
}

// tryOut asks about nothing, which must be refused. The first evaluation also
// fills OPA's caches, so that no worker waits for that.
func (r *Revision) tryOut() error {
	results, err := r.query.Eval(context.Background(), rego.EvalParsedInput(ast.NewObject()))
	if err != nil {
		return fmt.Errorf("trying policy out: %w", err)
	}
	for _, result := range results {
		for _, e := range result.Expressions {
			if d := decisionOf(e.Value); d.Allow {
				return errors.New("trying policy out: it allows an empty input")
			}
		}
	}
	return nil
}

// contentID hashes names and contents, each with its length, in order.
func contentID(files []bundleFile) string {
	h := sha256.New()
	for _, f := range files {
		fmt.Fprintf(h, "%d %s %d\n", len(f.name), f.name, len(f.data))
		h.Write(f.data)
	}
	return "sha256-" + hex.EncodeToString(h.Sum(nil)[:16])
}

// The catalogue as Rego sees it below data.portvakt_catalogue: the App and
// what is easier to compute once than in every Decision.
type (
	catalogueData struct {
		Apps map[string]appData `json:"apps"`
	}
	appData struct {
		App
		Access []ruleData `json:"access"`
	}
	ruleData struct {
		Rule
		Name  string     `json:"name"` // as Decision.Rule has it
		Hours *hoursData `json:"hours,omitempty"`
		Match matchData  `json:"match"`
	}
	hoursData struct {
		Hours
		Weekdays   []string `json:"weekdays"` // Days as OPA's time.weekday names them
		FromMinute int      `json:"from_minute"`
		ToMinute   int      `json:"to_minute"`
		Overnight  bool     `json:"overnight"`
	}
	// matchData holds Paths by how they are compared: whole, by prefix, or as
	// regular expressions, which are the slow ones.
	matchData struct {
		Exact    []string `json:"exact"`
		Prefixes []string `json:"prefixes"`
		Patterns []string `json:"patterns"`
	}
)

func catalogue(apps []App) map[string]catalogueData {
	c := catalogueData{Apps: map[string]appData{}}
	for _, a := range apps {
		d := appData{App: a, Access: []ruleData{}}
		for i, rule := range a.Access {
			rd := ruleData{Rule: rule, Name: fmt.Sprintf("%s.access[%d]", a.Name, i), Match: matcher(rule.Paths)}
			if h := rule.Hours; h != nil {
				rd.Hours = hoursOf(*h)
			}
			d.Access = append(d.Access, rd)
		}
		c.Apps[a.Name] = d
	}
	return map[string]catalogueData{"portvakt_catalogue": c}
}

func hoursOf(h Hours) *hoursData {
	d := &hoursData{Hours: h, FromMinute: minutes(h.From), ToMinute: minutes(h.To)}
	d.Overnight = d.FromMinute > d.ToMinute
	for i, name := range weekdays {
		if slices.Contains(h.Days, name) {
			d.Weekdays = append(d.Weekdays, time.Weekday((i+1)%7).String())
		}
	}
	return d
}

func matcher(patterns []string) matchData {
	m := matchData{Exact: []string{}, Prefixes: []string{}, Patterns: []string{}}
	for _, p := range patterns {
		begin, rest := strings.CutSuffix(p, "**")
		switch {
		case !strings.Contains(p, "*"):
			m.Exact = append(m.Exact, p)
		case rest && !strings.Contains(begin, "*"):
			m.Prefixes = append(m.Prefixes, begin)
		default:
			segments := strings.Split(p, "/")
			for i, s := range segments {
				switch s {
				case "*":
					segments[i] = `[^/]+`
				case "**":
					segments[i] = `(?s:.*)`
				default:
					segments[i] = regexp.QuoteMeta(s)
				}
			}
			m.Patterns = append(m.Patterns, "^"+strings.Join(segments, "/")+"$")
		}
	}
	return m
}

// minutes turns a checked HH:MM into minutes of the day.
func minutes(clock string) int {
	var h, m int
	if _, err := fmt.Sscanf(clock, "%d:%d", &h, &m); err != nil {
		return -1
	}
	return h*60 + m
}
