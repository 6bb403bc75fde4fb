package session_test

import (
	"testing"
	"time"
)

const phone = `
name: phone
protocol: udp
upstream: phone.example.com
ports: [5004]
visibility: explain
access:
  - groups: [sales]
`

// A device hears which apps' calls are marked, and at once when only that is
// published anew.
func TestStateSaysWhoseCallsAreMarked(t *testing.T) {
	g := newGateway(t)
	l := g.connect("anna")
	w, err := g.m.Watch(l.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	<-w.C
	for _, c := range []struct{ key, want string }{{"", "auto"}, {"dscp: off\n", "off"}, {"dscp: auto\n", "auto"}} {
		g.publish(crm, phone+c.key)
		select {
		case <-w.C:
		case <-time.After(10 * time.Second):
			t.Fatalf("nothing is told of %q", c.key)
		}
		st, err := g.m.State(l.ID, "en")
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, a := range st.Apps {
			got[a.Name] = a.DSCP
		}
		if dscp, ok := got["crm"]; !ok || dscp != "" || got["phone"] != c.want {
			t.Errorf("with %q: %v", c.key, got)
		}
	}
}
