// Package pages looks at every page that people meet as they do: in a browser,
// on a telephone, a tablet and a laptop, by day and by night, in each language,
// with a keyboard, and with axe-core, which finds what keeps people out.
package pages_test

import (
	"flag"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/policy"
)

var pictures = flag.String("pictures", "", "write a PNG of each page into this directory")

const axeFile = "node_modules/axe-core/axe.min.js"

// What axe-core looks for: WCAG 2.2, A and AA, and what it calls best practice;
// once for a page, and on each further screen what a screen can change.
const (
	everything = `{runOnly: {type: "tag", values: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}, resultTypes: ["violations", "incomplete"]}`
	appearance = `{runOnly: {type: "rule", values: ["color-contrast", "link-in-text-block", "target-size", "scrollable-region-focusable"]}, resultTypes: ["violations", "incomplete"]}`
)

type screen struct {
	name  string
	width int // in CSS pixels
	media map[string]string
}

// screens are what a page is looked at on, and what the person prefers.
var screens = []screen{
	{"telephone", 360, light},
	{"tablet", 768, light},
	{"laptop", 1280, light},
	{"telephone-dark", 360, dark},
	{"tablet-dark", 768, dark},
	{"laptop-dark", 1280, dark},
	// 1280 at 400 % (WCAG 1.4.10).
	{"zoom", 320, light},
	{"contrast", 768, map[string]string{"prefers-color-scheme": "light", "prefers-contrast": "more"}},
	{"forced", 768, map[string]string{"prefers-color-scheme": "dark", "forced-colors": "active"}},
}

var (
	light = map[string]string{"prefers-color-scheme": "light", "prefers-contrast": "no-preference", "forced-colors": "none"}
	dark  = map[string]string{"prefers-color-scheme": "dark", "prefers-contrast": "no-preference", "forced-colors": "none"}
)

// on says which screens a page is seen on: all of them once in English and once
// in each language, else where its words have least room, and by night.
func (s shot) on() []screen {
	if s.lang == "en" || s.name == string(policy.ReasonPostureFailed) || s.name == "logged-in" || s.name == "offline" {
		return screens
	}
	return slices.DeleteFunc(slices.Clone(screens), func(c screen) bool { return !slices.Contains([]string{"telephone", "zoom", "laptop-dark"}, c.name) })
}

// shot is one page: what the gateway or the agent answered.
type shot struct {
	name, lang string
	status     int
	header     http.Header
	body       string
	// says are words that the person must see.
	says []string
}

// want skips the test where the machine lacks what it needs; .ci/run installs
// both and counts a skipped test as failed.
func want(t *testing.T) (chromium, axe string) {
	t.Helper()
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("looking at the pages needs Chromium: install Debian's chromium")
	}
	text, err := os.ReadFile(axeFile)
	if err != nil {
		t.Skip("looking at the pages needs axe-core: install Debian's npm and run `make axe`")
	}
	return chromium, string(text)
}

func TestPages(t *testing.T) {
	chromium, axe := want(t)
	shots := slices.Concat(refusals(t), logins(t), unreached(t))
	// What was answered is shown as it was answered, from a server that does
	// nothing else.
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, s := range shots {
			if r.URL.Path == "/"+s.name+"."+s.lang {
				maps.Copy(w.Header(), s.header)
				w.Header().Del("Content-Length")
				// A sandboxed page has no timers, which axe-core needs. All else
				// of its policy stays in force.
				w.Header().Set("Content-Security-Policy", strings.ReplaceAll(s.header.Get("Content-Security-Policy"), "; sandbox", ""))
				w.WriteHeader(s.status)
				fmt.Fprint(w, s.body)
				return
			}
		}
		http.NotFound(w, r)
	}))
	defer srv.Close()
	tab, err := startBrowser(t, chromium).open()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range shots {
		t.Run(s.name+"."+s.lang, func(t *testing.T) {
			strict(t, s)
			if err := s.look(t, tab, srv.URL, axe); err != nil {
				t.Fatal(err)
			}
		})
	}
	if least := (len(policy.Reasons) - 1) * len(policy.Languages); len(shots) < least {
		t.Errorf("%d pages, there are %d refusals alone", len(shots), least)
	}
}

// strict checks what an answer says before it is shown.
func strict(t *testing.T, s shot) {
	t.Helper()
	csp := s.header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "style-src 'sha256-", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} {
		if !strings.Contains(csp, want) {
			t.Errorf("the policy %q lacks %q", csp, want)
		}
	}
	if strings.Contains(csp, "script-src") || strings.Contains(csp, "unsafe") || strings.Contains(csp, "http") || strings.Contains(csp, "*") {
		t.Errorf("the policy lets something in: %q", csp)
	}
	for name, want := range map[string]string{
		"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Content-Type": "text/html; charset=utf-8",
	} {
		if got := s.header.Get(name); got != want {
			t.Errorf("%s is %q", name, got)
		}
	}
}

// look loads a page once and sees it on every screen.
func (s shot) look(t *testing.T, tab *tab, server, axe string) error {
	t.Helper()
	name := s.name + "." + s.lang
	if err := tab.visit(server + "/" + name); err != nil {
		return err
	}
	world, err := tab.world()
	if err != nil {
		return err
	}
	// Through the debugger and in a world of its own: the page's policy forbids
	// every script, and goes on to.
	if err := tab.eval(world, axe+"\n;0", nil); err != nil {
		return fmt.Errorf("bringing axe-core in: %w", err)
	}
	for i, screen := range s.on() {
		if err := tab.show(screen.width, screen.media); err != nil {
			return err
		}
		if *pictures != "" {
			// The background is painted a frame later than what is on it.
			if err := tab.eval(world, `new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => r(0))))`, nil); err != nil {
				return err
			}
			if err := tab.picture(filepath.Join(*pictures, name+"."+screen.name+".png")); err != nil {
				return err
			}
		}
		var seen struct {
			Lang, Text    string
			Width, Inside int
		}
		if err := tab.eval(world, `({lang: document.documentElement.lang, text: document.body.innerText, width: document.documentElement.scrollWidth, inside: innerWidth})`, &seen); err != nil {
			return err
		}
		if seen.Lang != s.lang {
			t.Errorf("%s: the page's language is %q", screen.name, seen.Lang)
		}
		if seen.Inside != screen.width || seen.Width > seen.Inside {
			t.Errorf("%s: %d wide on a screen of %d", screen.name, seen.Width, seen.Inside)
		}
		text := strings.Join(strings.Fields(seen.Text), " ")
		for _, want := range s.says {
			if !strings.Contains(text, strings.Join(strings.Fields(want), " ")) {
				t.Errorf("%s: %q is not to be seen in\n%s", screen.name, want, text)
			}
		}
		rules := appearance
		if i == 0 {
			rules = everything
		}
		if err := audit(t, tab, world, rules, screen.name); err != nil {
			return err
		}
	}
	if err := reach(t, tab, world); err != nil {
		return err
	}
	requests, said := tab.happened()
	if !slices.Equal(requests, []string{server + "/" + name}) {
		t.Errorf("it asked for %q", requests)
	}
	// A status that is not 200 is told to the console, and is no fault.
	if said = slices.DeleteFunc(said, func(s string) bool { return strings.Contains(s, "the server responded with a status of") }); len(said) > 0 {
		t.Errorf("the console says %q", said)
	}
	return still(t, tab)
}

// audit runs axe-core: nothing may be wrong. What it cannot tell by itself is
// wrong too, so that nobody has to look.
func audit(t *testing.T, tab *tab, world int, rules, screen string) error {
	t.Helper()
	var found []string
	if err := tab.eval(world, `axe.run(document, `+rules+`).then(r => r.violations.concat(r.incomplete).map(v => v.id + ": " + v.help + ": " + v.nodes.map(n => n.html + " " + n.failureSummary).join("; ")))`, &found); err != nil {
		return fmt.Errorf("running axe-core: %w", err)
	}
	for _, v := range found {
		t.Errorf("%s: %s", screen, v)
	}
	return nil
}

// reach goes through the page with the Tab key: each link comes once, in its
// order, and shows that it is there.
func reach(t *testing.T, tab *tab, world int) error {
	t.Helper()
	var links int
	if err := tab.eval(world, `document.querySelectorAll("a, button, input, select, textarea, summary, [tabindex]").length`, &links); err != nil {
		return err
	}
	for i := range links {
		if err := tab.press("Tab", 9); err != nil {
			return err
		}
		var at struct {
			Index   int
			Outline bool
		}
		if err := tab.eval(world, `({index: [...document.querySelectorAll("a, button, input, select, textarea, summary, [tabindex]")].indexOf(document.activeElement),
			outline: document.activeElement.matches(":focus-visible") && getComputedStyle(document.activeElement).outlineStyle !== "none" && parseFloat(getComputedStyle(document.activeElement).outlineWidth) >= 2})`, &at); err != nil {
			return err
		}
		if at.Index != i || !at.Outline {
			t.Errorf("the %d. Tab leads to %+v", i+1, at)
		}
	}
	return nil
}

// still tries to run a script in the page as a name in it could.
func still(t *testing.T, tab *tab) error {
	t.Helper()
	var ran bool
	if err := tab.eval(0, `(() => {
		const s = document.createElement("script");
		s.textContent = "window.ran = true";
		document.body.append(s);
		document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.ran = true'>");
		return new Promise(r => setTimeout(() => r(window.ran === true || [...document.scripts].some(s => s.text.includes("alert"))), 0));
	})()`, &ran); err != nil {
		return err
	}
	if ran {
		t.Error("a script ran")
	}
	return nil
}
