package agent_test

import (
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portvakt/portvakt/agent"
	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/internal/wire"
)

// DNS is given each name once, in its one form, and nothing that is no name or
// would claim more than an app.
func TestNamesForDNS(t *testing.T) {
	apps := []wire.App{
		{Name: "crm", Hosts: []string{"CRM.example.com", "crm.example.com.", "b.example.com"}},
		{Name: "voice", Protocol: "udp", Hosts: []string{"sip.example.com", "100.96.1.1", "fd70::1", "intranet", ""}},
		{Name: "none"},
	}
	for _, c := range []struct {
		own    []string
		want   []string
		taking string // part of what is said of the names left out
	}{
		{nil, []string{"b.example.com", "crm.example.com", "sip.example.com"}, ""},
		{[]string{"gateway.example.com", "example.com", "xcrm.example.com"}, []string{"b.example.com", "crm.example.com", "sip.example.com"}, ""},
		{[]string{"gateway.crm.example.com"}, []string{"b.example.com", "sip.example.com"}, "crm.example.com would take gateway.crm.example.com along"},
		{[]string{"192.0.2.1", "sip.example.com"}, []string{"b.example.com", "crm.example.com"}, "sip.example.com would"},
	} {
		got, taking := agent.NamesOf(apps, c.own)
		if d := cmp.Diff(c.want, got); d != "" || (taking == "") != (c.taking == "") || !strings.Contains(taking, c.taking) {
			t.Errorf("own names %v: %s %q", c.own, d, taking)
		}
	}
}

// Without a helper the status says what is missing, and the agent goes on.
func TestTUNWithoutHelper(t *testing.T) {
	l := newLaptop(t)
	agent.RealTunnel(&l.cfg)
	l.cfg.TUN = &agent.TUN{HelperSocket: filepath.Join(t.TempDir(), "no.sock")}
	l.start()
	st := l.until("the missing helper is named", func(st *localapi.Status) bool {
		return st.Trouble != nil && st.Trouble.Code == "interface"
	})
	if st.Mode != localapi.ModeTUN || st.State != localapi.StateWaiting || st.RetryAt == nil {
		t.Errorf("status is %+v", st)
	}
	want := "portvakt-agent net-helper"
	if runtime.GOOS != "linux" {
		want = "Linux only"
	}
	if !strings.Contains(st.Trouble.Message, want) || !strings.Contains(st.Trouble.Remedy, "without --tun") {
		t.Errorf("the trouble is %+v", st.Trouble)
	}
}
