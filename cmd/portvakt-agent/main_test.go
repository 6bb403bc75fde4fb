package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/portvakt/portvakt/agent/control"
	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/agent/twin"
	"github.com/portvakt/portvakt/internal/wire"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"portvakt-agent": main}) }

var at = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

var denial = &wire.Denial{
	Decision: "d-42", Reason: "group_not_allowed", App: "payments", Time: at,
	Message: "Your account is in none of the groups that may use this app.",
	Fact:    &wire.Fact{Name: "groups", Value: "sales", Wanted: "finance"},
	Remedy:  "If you need it for your work, ask your supervisor to have your account added to one of the groups.",
}

var locked = &wire.Denial{
	Decision: "d-43", Reason: "locked_down", App: "desk", Time: at,
	Message: "Your company has closed this for the time being.",
}

// agents are running agents as the commands meet them.
func agents() map[string]localapi.Config {
	until := at.Add(8 * time.Hour)
	connected := localapi.Status{
		State: localapi.StateConnected, Version: "v1.2.3", Gateway: "https://gateway.example.com", DeviceID: "dev-1",
		CertificateExpiresAt: &until, Since: at, Location: wire.Location{Address: "192.0.2.7", Country: "SE"},
		Session: &wire.Session{ID: "s-1", Subject: "https://idp#anna", Name: "Anna \x1b[31mA", Groups: []string{"sales"}, OSUser: fmt.Sprintf("%d:me", os.Geteuid()), ExpiresAt: until},
		Posture: []wire.Signal{{Name: "host_firewall", State: "fail", Value: "ufw: off"}, {Name: "disk_encryption", State: "pass", Value: strings.Repeat("long ", 40)}, {Name: "screen_lock", State: "unknown", Value: "not_supported"}, {Name: "os_updates", State: "unknown", Value: "needs_helper"}},
		Proxy:   &localapi.Proxy{Address: "127.0.0.1:9180", PAC: "http://127.0.0.1:9180/proxy.pac"},
		Tunnel:  &localapi.Tunnel{Endpoint: "192.0.2.1:51820", RxBytes: 5 << 20, LastHandshake: &at, PostQuantum: true, Transport: "udp", MTU: 1280},
	}
	items := []localapi.App{
		{App: wire.App{Name: "crm", Protocol: "http", Hosts: []string{"crm.example.com"}, Allowed: true}, Local: []localapi.Mapping{}},
		{App: wire.App{Name: "desk", Protocol: "tcp", Addresses: []netip.Addr{}, Ports: []uint16{22}, Allowed: true}, Local: []localapi.Mapping{{Port: 22, Local: "127.0.0.1:40022"}}},
		{App: wire.App{Name: "payments", Protocol: "http", Hosts: []string{"pay.example.com"}, Denial: denial}, Local: []localapi.Mapping{}},
	}
	base := localapi.Config{
		Status: func() localapi.Status { return connected },
		Apps:   func() []localapi.App { return items },
		Why: func(_ context.Context, app string) (*wire.Denial, error) {
			switch app {
			case "crm":
				return &wire.Denial{Decision: "d-1", Allow: true, Reason: "allowed", Message: "Access is allowed.", App: "crm", Time: at}, nil
			case "payments":
				return denial, nil
			}
			return nil, &wire.Error{Code: "unavailable", Message: "The gateway could not do this now.", Remedy: "Try again in a moment.", Retry: true}
		},
		Login: func(_ context.Context, _ localapi.Caller, page func(*wire.LoginResponse) error) (*wire.State, error) {
			if err := page(&wire.LoginResponse{URL: "https://idp.example.com/auth?a=1&state=x", ExpiresAt: until}); err != nil {
				return nil, err
			}
			return &wire.State{Session: connected.Session}, nil
		},
		Logout: func(context.Context) error { return nil },
	}
	refusing := base
	refusing.Login = func(context.Context, localapi.Caller, func(*wire.LoginResponse) error) (*wire.State, error) {
		return nil, &wire.Error{Code: "idp_refused", Message: "The login page said no.", Remedy: "Ask your IT support."}
	}
	refusing.Status = func() localapi.Status {
		return localapi.Status{
			State: localapi.StateRevoked, Since: at, DeviceID: "dev-1", Gateway: "https://gateway.example.com",
			Denial: &wire.Denial{Reason: "device_revoked", Message: "This laptop is no longer allowed to connect.", Remedy: "Ask your IT support; they can enrol it again."},
		}
	}
	// The desk is closed and its calls may be finished; then everything is.
	desk := localapi.App{App: wire.App{Name: "desk", Protocol: "tcp", Denial: locked, FinishBy: &until}, Local: []localapi.Mapping{}}
	partly, shut := base, base
	partly.Apps = func() []localapi.App { return []localapi.App{items[0], desk, items[2]} }
	partly.Why = func(context.Context, string) (*wire.Denial, error) { return locked, nil }
	shut.Apps = func() []localapi.App { return []localapi.App{desk} }
	waiting := base
	waiting.Status = func() localapi.Status {
		t := control.Diagnose(&control.ClockError{Now: at, NotBefore: until, NotAfter: until})
		return localapi.Status{State: localapi.StateWaiting, Since: at, Trouble: &t, RetryAt: &until}
	}
	waiting.Apps = func() []localapi.App { return nil }
	return map[string]localapi.Config{"ok": base, "refusing": refusing, "waiting": waiting, "partly": partly, "shut": shut}
}

func TestScripts(t *testing.T) {
	g := twin.New(t, nil)
	dir, err := os.MkdirTemp("", "pv") // short: Unix sockets go in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for name, cfg := range agents() {
		cfg.Path, cfg.OwnUID = filepath.Join(dir, name), uint32(os.Geteuid())
		ctx, cancel := context.WithCancel(context.Background())
		s, done := localapi.New(cfg), make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		<-s.Ready()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("GATEWAY", g.URL)
			e.Setenv("SOCKETS", dir)
			e.Setenv("PORTVAKT_STATE", filepath.Join(e.WorkDir, "state"))
			e.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// language TAG: the gateway was asked in it last.
			"language": func(ts *testscript.TestScript, _ bool, args []string) {
				if all := g.Languages(); len(all) == 0 || all[len(all)-1] != args[0] {
					ts.Fatalf("the gateway was asked in %q", all)
				}
			},
			// code VAR: a fresh enrolment code in an environment variable.
			"code": func(ts *testscript.TestScript, _ bool, args []string) { ts.Setenv(args[0], g.Code().String()) },
			// exits CODE args...: runs the agent and compares its exit code.
			"exits": func(ts *testscript.TestScript, _ bool, args []string) {
				err := ts.Exec("portvakt-agent", args[1:]...)
				code := 0
				if x, ok := err.(interface{ ExitCode() int }); ok {
					code = x.ExitCode()
				} else if err != nil {
					ts.Fatalf("%v", err)
				}
				if fmt.Sprint(code) != args[0] {
					ts.Fatalf("it exits with %d", code)
				}
			},
			// keys NAME...: the last output is a JSON object with these members.
			"keys": func(ts *testscript.TestScript, _ bool, args []string) {
				var m map[string]json.RawMessage
				if err := json.Unmarshal([]byte(ts.ReadFile("stdout")), &m); err != nil {
					ts.Fatalf("not a JSON object: %v", err)
				}
				for _, k := range args {
					if _, ok := m[k]; !ok {
						ts.Fatalf("no member %q", k)
					}
				}
			},
			// narrow: no line of the last output is wider than 80 columns.
			"narrow": func(ts *testscript.TestScript, _ bool, _ []string) {
				for line := range strings.Lines(ts.ReadFile("stdout")) {
					if n := len([]rune(strings.TrimRight(line, "\n"))); n > 80 {
						ts.Fatalf("%d columns: %s", n, line)
					}
				}
			},
		},
	})
}

func TestEveryCommandExplainsItself(t *testing.T) {
	for _, c := range newRoot(new(bool)).Commands() {
		if c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		if len(c.Long) < 80 || !strings.Contains(c.Example, "portvakt-agent "+c.Name()) {
			t.Errorf("%s: a newcomer needs more than %q", c.Name(), c.Long)
		}
		var out bytes.Buffer
		if code := run(t.Context(), []string{c.Name(), "--help"}, nil, &out, &out); code != 0 {
			t.Errorf("%s --help: %d", c.Name(), code)
		}
		for line := range strings.Lines(out.String()) {
			if len(line) > 81 {
				t.Errorf("%s --help: %d columns: %s", c.Name(), len(line), line)
			}
		}
	}
}

func TestColorOnlyOnRequest(t *testing.T) {
	st := agents()["ok"].Status()
	var plain, colored bytes.Buffer
	newPaper(&plain).status(&st)
	(&paper{out: &colored, color: true, now: time.Now}).status(&st)
	if strings.Contains(plain.String(), "\x1b") {
		t.Error("escape sequences in a pipe")
	}
	if !strings.Contains(colored.String(), "\x1b[32m") || strings.Contains(colored.String(), "\x1b[31mA") || strings.Contains(colored.String(), "\x1b[m") {
		t.Error("ours should be there, and what came with a name should not")
	}
}

func TestStatusShowsTheTransport(t *testing.T) {
	for _, c := range []struct{ transport, reason, want string }{
		{"udp", "", "transport   UDP\ninner MTU   1280 bytes\n"},
		{"udp", "sent one by one", "transport   UDP: sent one by one\ninner MTU   1280 bytes\n"},
		{"websocket", "UDP is not answered", "transport   WebSocket: UDP is not answered\ninner MTU   1280 bytes\n"},
	} {
		st := agents()["ok"].Status()
		tunnel := *st.Tunnel
		tunnel.Transport, tunnel.TransportReason = c.transport, c.reason
		st.Tunnel = &tunnel
		var out bytes.Buffer
		newPaper(&out).status(&st)
		if !strings.Contains(out.String(), c.want) {
			t.Errorf("%s: want %q in\n%s", c.transport, c.want, out.String())
		}
	}
}

func TestLanguageOfTheEnvironment(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		want string
	}{
		{nil, ""},
		{map[string]string{"LANG": "sv_SE.UTF-8"}, "sv-SE"},
		{map[string]string{"LANG": "sv_SE.UTF-8", "LC_MESSAGES": "nl_BE@euro"}, "nl-BE"},
		{map[string]string{"LANG": "sv_SE.UTF-8", "LC_ALL": "C.UTF-8"}, ""},
		{map[string]string{"LANG": "POSIX"}, ""},
		{map[string]string{"LANG": "fi"}, "fi"},
	} {
		if got := languageOf(func(k string) string { return c.env[k] }); got != c.want {
			t.Errorf("%v: %q, want %q", c.env, got, c.want)
		}
	}
}

func TestTellerSaysEachThingOnce(t *testing.T) {
	var out bytes.Buffer
	tl := &teller{out: &out}
	cfg := agents()["ok"]
	for range 3 {
		apps := append(cfg.Apps(), localapi.App{App: wire.App{Name: "x\x1b[31m", Protocol: "tcp"}, Local: []localapi.Mapping{{Port: 1, Local: "127.0.0.1:1"}}})
		tl.tell(cfg.Status(), apps)
	}
	for _, want := range []string{"127.0.0.1:9180 (HTTP and SOCKS5)", "/proxy.pac", "desk: 127.0.0.1:40022 (tcp 22)", "connected to https://gateway.example.com"} {
		if n := strings.Count(out.String(), want); n != 1 {
			t.Errorf("%q is said %d times in\n%s", want, n, out.String())
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("the control characters of a name reached the terminal")
	}
}

func TestErrorsDoNotCommandTheTerminal(t *testing.T) {
	for err, want := range map[error]string{
		&wire.Error{Code: "x", Message: "No\x1b[31m.", Remedy: "Ask\rIT."}:                            "No?[31m.\nAsk?IT.",
		fmt.Errorf("x: %w", &wire.Error{Code: "x", Message: "No\x1b.", Remedy: "Ask."}):               "x: No?. Ask.",
		errors.Join(errors.New("one\x07"), errors.New("two \u202e")):                                  "one?\ntwo ?",
		&wire.Error{Code: "x", Message: "Det går inte – försök igen.", Remedy: "Fråga IT-supporten."}: "Det går inte – försök igen.\nFråga IT-supporten.",
	} {
		if got := sentence(err); got != want {
			t.Errorf("%q is said as %q", err, got)
		}
	}
}

func TestTellerForPrograms(t *testing.T) {
	var out bytes.Buffer
	tl := &teller{out: &out, json: true}
	cfg := agents()["ok"]
	tl.tell(cfg.Status(), nil)
	tl.tell(cfg.Status(), cfg.Apps())
	type change struct {
		Status localapi.Status
		Items  []localapi.App
	}
	var lines []change
	for line := range strings.Lines(out.String()) {
		var c change
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		lines = append(lines, c)
	}
	if len(lines) != 2 || lines[0].Items == nil || len(lines[1].Items) != 3 || lines[1].Status.State != localapi.StateConnected {
		t.Errorf("%s", out.String())
	}
}

func TestWorkerIsToldUntilWhen(t *testing.T) {
	until := time.Date(2030, 3, 4, 17, 30, 0, 0, time.Local)
	st, apps := agents()["ok"].Status(), agents()["ok"].Apps()
	st.Finish = &wire.Finish{Until: until, OSUser: "1000:anna", Message: "U mag de open gesprekken afmaken; er begint niets nieuws.\x1b"}
	apps[0].Allowed, apps[0].FinishBy = false, &until
	var status, list, told bytes.Buffer
	newPaper(&status).status(&st)
	newPaper(&list).apps(apps)
	tl := &teller{out: &told}
	tl.tell(st, apps)
	tl.tell(st, apps)
	for what, c := range map[string]struct{ got, want string }{
		"status": {status.String(), "finish      until 2030-03-04 17:30: U mag de open gesprekken afmaken; er begint\n            niets nieuws.?\n"},
		"apps":   {list.String(), "what is open may be finished until 2030-03-04 17:30\n"},
		"run":    {told.String(), "\nuntil 2030-03-04 17:30: U mag de open gesprekken afmaken; er begint niets nieuws.?\n"},
	} {
		if strings.Count(c.got, c.want) != 1 {
			t.Errorf("%s: want %q once in\n%s", what, c.want, c.got)
		}
	}
}
