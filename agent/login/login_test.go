package login_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/agent/login"
	"github.com/portvakt/portvakt/internal/page"
	"github.com/portvakt/portvakt/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// person is one login in progress and the browser's side of it.
type person struct {
	redirect string
	answers  []wire.LoginComplete
	result   chan error
	state    *wire.State
	cancel   context.CancelFunc
}

func begin(t *testing.T, change func(*login.Config)) *person {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p := &person{result: make(chan error, 1), cancel: cancel}
	opened := make(chan struct{})
	cfg := login.Config{
		UID:    7,
		UserOf: func(net.Conn) (uint32, error) { return 7, nil },
		Begin: func(_ context.Context, redirect string) (*wire.LoginResponse, error) {
			p.redirect = redirect
			return &wire.LoginResponse{URL: "https://idp.example/auth?client_id=x&state=right", ExpiresAt: time.Now().Add(time.Minute)}, nil
		},
		Open: func(*wire.LoginResponse) error { close(opened); return nil },
		Complete: func(_ context.Context, c wire.LoginComplete) (*wire.State, error) {
			p.answers = append(p.answers, c)
			return &wire.State{Session: &wire.Session{Name: "Anna <b>A</b>"}}, nil
		},
	}
	if change != nil {
		change(&cfg)
	}
	go func() {
		s, err := login.Run(ctx, cfg)
		p.state = s
		p.result <- err
	}()
	select {
	case <-opened:
	case err := <-p.result:
		p.result <- err
	}
	t.Cleanup(cancel)
	return p
}

func (p *person) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-p.result:
		return err
	case <-time.After(5 * time.Second):
		t.Fatal("the login does not end")
		return nil
	}
}

type got struct {
	status int
	body   string
	header http.Header
}

func browse(t *testing.T, req *http.Request) (got, error) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	res, err := c.Do(req)
	if err != nil {
		return got{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return got{res.StatusCode, string(body), res.Header}, err
}

func get(t *testing.T, url string) got {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	g, err := browse(t, req)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// The page at the end speaks the person's language, whichever way it ends.
func TestThePageSpeaksTheLanguage(t *testing.T) {
	for asked, want := range map[string][2]string{
		"":                 {`lang="en"`, "You are logged in"},
		"fr-FR":            {`lang="en"`, "Welcome, Anna"},
		"sv-FI, en;q=0.5":  {`lang="sv"`, "Välkommen, Anna"},
		"nn-NO":            {`lang="nb"`, "Du er logget inn"},
		"da":               {`lang="da"`, "Du er logget ind"},
		"fi":               {`lang="fi"`, "Olet kirjautunut sisään"},
		"fr, nl-BE;q=0.7 ": {`lang="nl"`, "U bent ingelogd"},
	} {
		p := begin(t, func(c *login.Config) { c.Language = asked })
		page := get(t, p.redirect+"?state=right&code=c")
		if page.status != 200 || !strings.Contains(page.body, want[0]) || !strings.Contains(page.body, want[1]) {
			t.Errorf("%q: %d %s", asked, page.status, page.body)
		}
		if err := p.end(t); err != nil {
			t.Error(err)
		}
	}
	p := begin(t, func(c *login.Config) {
		c.Language = "sv"
		c.Complete = func(context.Context, wire.LoginComplete) (*wire.State, error) {
			return nil, &wire.Error{Code: "unknown_state", Message: "Det gick inte."}
		}
	})
	page := get(t, p.redirect+"?state=right&code=c")
	if page.status != 403 || !strings.Contains(page.body, "Du är inte inloggad") || !strings.Contains(page.body, "<dt>Orsak</dt><dd><code>unknown_state</code>") {
		t.Errorf("refused: %d %s", page.status, page.body)
	}
	if err := p.end(t); err == nil {
		t.Error("the refusal is lost")
	}
}

// No language lacks a word.
func TestWordsInEveryLanguage(t *testing.T) {
	for _, lang := range page.Languages {
		words := login.Languages[lang]
		for name, v := range reflect.ValueOf(words).Fields() {
			if v.String() == "" {
				t.Errorf("%s has no %s", lang, name.Name)
			}
		}
	}
}

func TestLogin(t *testing.T) {
	p := begin(t, nil)
	u, err := url.Parse(p.redirect)
	if err != nil || u.Scheme != "http" || u.Hostname() != "127.0.0.1" || u.Path != "/callback" || u.Port() == "" {
		t.Fatalf("redirect %q", p.redirect)
	}
	page := get(t, p.redirect+"?state=right&code=c%2B1&iss=https%3A%2F%2Fidp.example")
	if page.status != 200 || !strings.Contains(page.body, "Welcome, Anna &lt;b&gt;A&lt;/b&gt;") || strings.Contains(page.body, "<script") {
		t.Errorf("the page: %d %s", page.status, page.body)
	}
	if csp := page.header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
		t.Errorf("CSP %q", csp)
	}
	if err := p.end(t); err != nil || p.state.Session == nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]wire.LoginComplete{{State: "right", Code: "c+1", Issuer: "https://idp.example"}}, p.answers); diff != "" {
		t.Error(diff)
	}
	if c, err := net.Dial("tcp", u.Host); err == nil {
		c.Close()
		t.Error("the listener outlives the login")
	}
}

// None of these may use up the one answer.
func TestWhatIsNotTheAnswer(t *testing.T) {
	p := begin(t, nil)
	base := strings.TrimSuffix(p.redirect, "/callback")
	for name, tc := range map[string]struct {
		method, url, host string
		want              int
	}{
		"wrong state":    {url: p.redirect + "?state=wrong&code=c", want: 400},
		"no state":       {url: p.redirect + "?code=c", want: 400},
		"state twice":    {url: p.redirect + "?state=right&state=right&code=c", want: 400},
		"code twice":     {url: p.redirect + "?state=right&code=a&code=b", want: 400},
		"nothing":        {url: p.redirect, want: 400},
		"state alone":    {url: p.redirect + "?state=right", want: 400},
		"garbled":        {url: p.redirect + "?state=right&code=%zz", want: 400},
		"semicolon":      {url: p.redirect + "?state=right;code=c", want: 400},
		"POST":           {method: "POST", url: p.redirect + "?state=right&code=c", want: 405},
		"another path":   {url: base + "/favicon.ico", want: 404},
		"path with more": {url: base + "/callback/?state=right&code=c", want: 404},
		"another name":   {url: p.redirect + "?state=right&code=c", host: "evil.example", want: 421},
		"localhost":      {url: p.redirect + "?state=right&code=c", host: "localhost", want: 421},
	} {
		req, err := http.NewRequest(tc.method, tc.url, nil)
		if err != nil {
			t.Fatal(name, err)
		}
		req.Host = tc.host
		if g, err := browse(t, req); err != nil || g.status != tc.want {
			t.Errorf("%s: %d, %v", name, g.status, err)
		}
	}
	if len(p.answers) != 0 {
		t.Errorf("the gateway was given %+v", p.answers)
	}
	if g := get(t, p.redirect+"?state=right&code=c"); g.status != 200 {
		t.Errorf("the real answer afterwards: %d", g.status)
	}
	if err := p.end(t); err != nil {
		t.Error(err)
	}
}

func TestRefusalReachesThePerson(t *testing.T) {
	refusal := &wire.Error{Code: "idp_refused", Message: "Your company's login page said no.", Remedy: "Ask <IT>."}
	p := begin(t, func(c *login.Config) {
		c.Complete = func(context.Context, wire.LoginComplete) (*wire.State, error) { return nil, refusal }
	})
	g := get(t, p.redirect+"?state=right&error=access_denied&error_description=no")
	if g.status != 403 || !strings.Contains(g.body, "said no.") || !strings.Contains(g.body, "Ask &lt;IT&gt;.") || !strings.Contains(g.body, "idp_refused") {
		t.Errorf("%d %s", g.status, g.body)
	}
	var e *wire.Error
	if err := p.end(t); !errors.As(err, &e) || e.Code != "idp_refused" {
		t.Errorf("got %v", err)
	}
}

func TestConnectionsOfOthersAreClosedUnread(t *testing.T) {
	for name, userOf := range map[string]func(net.Conn) (uint32, error){
		"another user": func(net.Conn) (uint32, error) { return 8, nil },
		"unknown":      func(net.Conn) (uint32, error) { return 7, errors.New("not found") },
		"no lookup":    nil,
	} {
		p := begin(t, func(c *login.Config) { c.UserOf = userOf })
		req, err := http.NewRequest(http.MethodGet, p.redirect+"?state=right&code=c", nil)
		if err != nil {
			t.Fatal(err)
		}
		if g, err := browse(t, req); err == nil {
			t.Errorf("%s: answered %d", name, g.status)
		}
		p.cancel()
		if err := p.end(t); !errors.Is(err, context.Canceled) || len(p.answers) != 0 {
			t.Errorf("%s: %v, %+v", name, err, p.answers)
		}
	}
}

func TestTimeout(t *testing.T) {
	p := begin(t, func(c *login.Config) {
		c.Begin = func(context.Context, string) (*wire.LoginResponse, error) {
			return &wire.LoginResponse{URL: "https://idp/", ExpiresAt: time.Now().Add(50 * time.Millisecond)}, nil
		}
	})
	if err := p.end(t); !errors.Is(err, login.ErrTimeout) {
		t.Errorf("got %v", err)
	}
}

func TestPorts(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := uint16(taken.Addr().(*net.TCPAddr).Port)
	p := begin(t, func(c *login.Config) { c.Ports = []uint16{port} })
	if err := p.end(t); !errors.Is(err, login.ErrPort) {
		t.Errorf("the only port is taken: %v", err)
	}
	p = begin(t, func(c *login.Config) { c.Ports = []uint16{port, 0} })
	if p.redirect == "" {
		t.Error("the second port was not tried")
	}
	p.cancel()
	p.end(t)
}

func TestOpenBrowserRunsNoPrograms(t *testing.T) {
	for _, u := range []string{"file:///etc/passwd", "javascript:alert(1)", "calc.exe", "", "https://", "ms-settings:x"} {
		if err := login.OpenBrowser(t.Context(), u); err == nil {
			t.Errorf("%q was opened", u)
		}
	}
}
