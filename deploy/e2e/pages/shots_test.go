package pages_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portvakt/portvakt/agent/login"
	"github.com/portvakt/portvakt/agent/loopback"
	"github.com/portvakt/portvakt/gateway/refusal"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

const decisionID = "d-0123456789abcdef0123456789abcdef"

// facts are what decides in each Reason that has one, as the shipped Rego and
// the gateway write it.
var facts = map[policy.Reason]policy.Fact{
	policy.ReasonUnknownApp:         {Name: "port", Value: "2222", Wanted: "one of 22, 443"},
	policy.ReasonLoginRequired:      {Name: "session", Value: "none", Wanted: "a login"},
	policy.ReasonSessionExpired:     {Name: "session.expires_at", Value: "2026-11-21T20:29:13Z", Wanted: "later than 2026-11-21T20:30:00Z"},
	policy.ReasonDeviceRevoked:      {Name: "device", Value: "revoked 2026-11-21T20:29:13Z (stolen)", Wanted: "enrolled"},
	policy.ReasonGroupNotAllowed:    {Name: "groups", Value: "agents, night-shift, sales-nordics, team-leads-sundsvall", Wanted: "one of payments, payments-approvers"},
	policy.ReasonPostureFailed:      {Name: "host_firewall", Value: "fail: ufw: off", Wanted: "pass"},
	policy.ReasonPostureUnknown:     {Name: "disk_encryption", Value: "unknown: no answer from the posture helper", Wanted: "pass"},
	policy.ReasonPostureStale:       {Name: "posture_report", Value: "none", Wanted: "a recent report"},
	policy.ReasonLocationNotAllowed: {Name: "country", Value: "DE", Wanted: "one of SE, NO, FI"},
	policy.ReasonLocationUnknown:    {Name: "country", Value: "unknown", Wanted: "not RU, BY"},
	policy.ReasonOutsideHours:       {Name: "time", Value: "sat 22:41 Europe/Stockholm", Wanted: "mon, tue, wed, thu, fri 07:00-18:00 Europe/Stockholm"},
	policy.ReasonMethodNotAllowed:   {Name: "method", Value: "POST", Wanted: "one of GET, HEAD"},
	policy.ReasonPathNotAllowed:     {Name: "path", Value: "/admin/" + strings.Repeat("unbroken", 20), Wanted: "one of /customers/**, /queue"},
	policy.ReasonPolicyDenied:       {Name: "travel", Value: "", Wanted: "approved"},
	policy.ReasonCrossSite:          {Name: "sec-fetch-site", Value: "cross-site", Wanted: "same-origin, or opening a page"},
	policy.ReasonPolicyError:        {Name: "facts", Value: "changing", Wanted: "settled"},
	policy.ReasonBadRequest:         {Name: "request target", Value: "/a/../b%2f%zz", Wanted: "a target that can be read in one way only"},
	policy.ReasonMisdirected:        {Name: "host", Value: "crm.demo.example", Wanted: "payments.demo.example"},
	policy.ReasonTooManyFlows:       {Name: "open connections", Value: "4096", Wanted: "fewer than 4096"},
	policy.ReasonLockedDown:         {Name: "app", Value: "crm", Wanted: "lockdown lifted"},
}

// titles are names that IT gives apps; the last two try the layout and the
// markup.
var titles = []string{
	"Customer register", "CRM", "Kundenverwaltungssystemüberwachungsanwendungsoberflächenportal",
	`<b onclick="alert(1)">Åsa & Söner "AB"</b><script>alert(1)</script> …`,
}

// refusals is the block page for every Reason in every language.
func refusals(t *testing.T) (shots []shot) {
	t.Helper()
	reasons := slices.Sorted(func(yield func(policy.Reason) bool) {
		for r := range policy.Reasons {
			if r != policy.ReasonAllowed && !yield(r) {
				return
			}
		}
	})
	for n, reason := range reasons {
		var fact *policy.Fact
		if f, ok := facts[reason]; ok {
			fact = &f
		}
		for _, lang := range policy.Languages {
			d := policy.NewDecision(reason, fact)
			d.ID, d.App, d.Time = decisionID, "crm", time.Date(2026, 11, 21, 20, 30, 0, 0, time.UTC)
			title := titles[n%len(titles)]
			w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "https://crm.demo.example/", nil)
			r.Header.Set("Accept-Language", lang+", en;q=0.5")
			r.Header.Set("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
			if err := (refusal.Answer{Decision: d, Status: refusal.StatusOf(reason), App: &policy.App{Name: "crm", Title: title}}).Write(w, r); err != nil {
				t.Fatal(err)
			}
			text := policy.Reasons[reason][lang]
			shots = append(shots, shot{
				name: string(reason), lang: lang, status: w.Code, header: w.Header(), body: w.Body.String(),
				says: []string{text.Message, strings.ReplaceAll(text.Remedy, "`", ""), decisionID, title},
			})
		}
	}
	return shots
}

// logins are the pages at the end of a login, from the agent's own listener.
func logins(t *testing.T) (shots []shot) {
	t.Helper()
	for _, lang := range policy.Languages {
		welcome := &wire.State{Session: &wire.Session{Name: `Åsa "<b>Bo</b>" Lindqvist-Öström af Västerbotten och Norrland`}}
		text := policy.Reasons[policy.ReasonIDPUnavailable][lang]
		shots = append(shots,
			ending(t, "logged-in", lang, "?state=right&code=c", welcome, nil, welcome.Session.Name),
			ending(t, "login-refused", lang, "?state=right&code=c", nil, &wire.Error{Code: "idp_unavailable", Message: text.Message, Remedy: text.Remedy}, text.Message, text.Remedy),
			ending(t, "login-lost", lang, "?state=right&code=c", nil, context.DeadlineExceeded),
			ending(t, "login-garbled", lang, "?state=other&code=c", nil, nil),
			ending(t, "login-misread", lang, "?state=right", nil, nil),
		)
	}
	return shots
}

// ending is the page that a login ends with when the browser comes back by
// query, and the gateway then answers state or err.
func ending(t *testing.T, name, lang, query string, state *wire.State, refused error, says ...string) shot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	back := make(chan string, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = login.Run(ctx, login.Config{
			UID: 7, UserOf: func(net.Conn) (uint32, error) { return 7, nil }, Language: lang,
			Begin: func(_ context.Context, redirect string) (*wire.LoginResponse, error) {
				back <- redirect
				return &wire.LoginResponse{URL: "https://idp.example/auth?state=right", ExpiresAt: time.Now().Add(time.Minute)}, nil
			},
			Open:     func(*wire.LoginResponse) error { return nil },
			Complete: func(context.Context, wire.LoginComplete) (*wire.State, error) { return state, refused },
		})
	}()
	defer func() { cancel(); <-ended }()
	var at string
	select {
	case at = <-back:
	case <-ended:
		t.Fatal("the login ended before it began")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	return answered(t, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, req, name, lang, says...)
}

// unreached are what the agent's proxy says of an app that it cannot reach.
func unreached(t *testing.T) (shots []shot) {
	t.Helper()
	app := wire.App{Name: "crm-for-everybody-who-answers-calls-in-the-evening-and-nights", Protocol: "http", Hosts: []string{"crm.demo.example"}, Ports: []uint16{443, 80}, Addresses: []netip.Addr{netip.MustParseAddr("10.99.0.16")}}
	for name, why := range map[string]error{"offline": &wire.Error{Code: "dns", Message: "no name"}, "silent": context.DeadlineExceeded, "reset": errors.New("connection refused")} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		s := loopback.New(loopback.Config{
			ProxyAddr: "127.0.0.1:0", UserAllowed: func(uint32) bool { return true }, AllowAnyLocalUser: true,
			Dial: func(context.Context, string, netip.AddrPort) (net.Conn, error) { return nil, why },
		})
		s.SetApps([]wire.App{app})
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		select {
		case <-s.Ready():
		case err := <-ended:
			t.Fatal(err)
		}
		proxy, _ := s.Addresses()
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: proxy.String()})}}
		for _, lang := range policy.Languages {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://crm.demo.example/", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Accept", "text/html,*/*;q=0.8")
			req.Header.Set("Accept-Language", lang)
			shots = append(shots, answered(t, client, req, name, lang, app.Name))
		}
		cancel()
		<-ended
	}
	slices.SortStableFunc(shots, func(a, b shot) int { return strings.Compare(a.name, b.name) })
	return shots
}

// answered is the page that a request is answered with.
func answered(t *testing.T, client *http.Client, req *http.Request, name, lang string, says ...string) shot {
	t.Helper()
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return shot{name: name, lang: lang, status: res.StatusCode, header: res.Header, body: string(body), says: says}
}
