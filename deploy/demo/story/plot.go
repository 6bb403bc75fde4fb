package story

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/deploy/demo/app"
	"github.com/portvakt/portvakt/deploy/demo/stage"
)

// Addresses that the workers open.
const (
	crm       = "https://" + stage.CRMHost
	customers = crm + "/api/customers"
	payments  = "https://" + stage.PaymentsHost + "/api/payments"
)

// A published policy and a dropped-in file take effect within this time.
const policyLimit = time.Second

// afterLimit bounds what follows from a change by itself.
const afterLimit = 10 * time.Second

// The Rego file that is dropped in, and what it says.
const (
	regoFile    = "freeze.rego"
	regoMessage = "The customer list is being moved to another system."
	regoText    = `# Dropped in by the demo: nobody opens the customer list for now.
package portvakt.custom.freeze

deny contains {
	"message": "` + regoMessage + `",
	"remedy": "It is back at 20:00.",
} if {
	input.app.name == "crm"
	input.action == "request"
	input.request.path == "/api/customers"
}
`
)

// plot is what the steps know of each other.
type plot struct {
	stage     *stage.Stage
	anna, ben *hands
	flows     []*flow // that Anna has open
	device    string  // Anna's
	subject   string  // Anna, ISS#SUB
}

// Steps is the story on a stage. Call the returned function at its end,
// whatever came of it.
func Steps(s *stage.Stage) ([]Step, func(), error) {
	p := &plot{stage: s}
	var err, err2 error
	p.anna, err = newHands(s.Anna, s.CA)
	p.ben, err2 = newHands(s.Ben, s.CA)
	if err := errors.Join(err, err2); err != nil {
		return nil, nil, err
	}
	end := func() {
		stopAll(p.flows)
		p.anna.close()
		p.ben.close()
	}
	return []Step{
		{"before the login the CRM refuses and says why", p.beforeLogin},
		{"Anna (sales) and Ben (support) log in through Dex", p.login},
		{"the CRM answers through the tunnel and sees who it is", p.whoIsIt},
		{"on one connection GET is allowed and POST /export is refused", p.oneConnection},
		{"Anna is refused payments with the reason; Ben is not", p.payments},
		{"a WebSocket, a TCP and a UDP flow stay open", p.openFlows},
		{"the firewall goes off: all three are cut", p.firewallOff},
		{"the firewall goes on: everything is back", p.firewallOn},
		{"in a refused country: location_not_allowed, WebSocket cut", p.travel},
		{"home again: the CRM is back", p.home},
		{"a Rego file is dropped in: access changes within a second", p.dropRego},
		{"the group is removed from policy: refused", p.removeGroup},
		{"the device is revoked: the tunnel is gone and the agent says why", p.revoke},
		{"the audit log tells all of it in order", p.audit},
		{"a recorded decision is reproduced from the built bundle", p.reproduce},
	}, end, nil
}

func (p *plot) beforeLogin(ctx context.Context) (string, error) {
	a, err := p.anna.refused(ctx, "GET", customers, "login_required")
	return a.String(), err
}

func (p *plot) login(ctx context.Context) (string, error) {
	errs := make(chan error, 2)
	for _, h := range []*hands{p.anna, p.ben} {
		go func() { errs <- h.laptop.Login(ctx) }()
	}
	if err := errors.Join(<-errs, <-errs); err != nil {
		return "", err
	}
	st, err := p.anna.status(ctx)
	if err != nil {
		return "", err
	}
	if st.Session == nil || st.Session.Name != stage.Anna.Name {
		return "", notSo("a session of "+stage.Anna.Name, "%+v", st.Session)
	}
	p.device, p.subject = st.DeviceID, st.Session.Subject
	return fmt.Sprintf("%s is in %s until %s", st.Session.Name, strings.Join(st.Session.Groups, ", "), st.Session.ExpiresAt.Local().Format("15:04")), nil
}

func (p *plot) whoIsIt(ctx context.Context) (string, error) {
	a, _, err := until(ctx, afterLimit, func(ctx context.Context) (answer, error) { return p.anna.allowed(ctx, "GET", crm+"/api/me") })
	if err != nil {
		return "", err
	}
	var who app.Who
	if err := decode(a.body, &who); err != nil {
		return "", err
	}
	if who.Name != stage.Anna.Name || strings.Join(who.Groups, ",") != "sales" {
		return "", notSo("the CRM to see Anna Alm of sales", "%+v", who)
	}
	return fmt.Sprintf("the CRM verified the assertion: %s, %v", who.Name, who.Groups), nil
}

func (p *plot) oneConnection(ctx context.Context) (string, error) {
	first, err := p.anna.allowed(ctx, "GET", customers)
	if err != nil {
		return "", err
	}
	export, err := p.anna.refused(ctx, "POST", crm+"/export", "method_not_allowed")
	if err != nil {
		return "", err
	}
	again, err := p.anna.allowed(ctx, "GET", customers)
	if err != nil {
		return "", err
	}
	if !export.reused || !again.reused || export.conn != first.conn || again.conn != first.conn {
		return "", notSo("three requests on one connection", "%s, %s, %s", first.conn, export.conn, again.conn)
	}
	return fmt.Sprintf("GET 200, POST %s, GET 200, all from %s", export, first.conn), nil
}

func (p *plot) payments(ctx context.Context) (string, error) {
	a, err := p.anna.refused(ctx, "GET", payments, "group_not_allowed")
	if err != nil {
		return "", err
	}
	if _, _, err := until(ctx, afterLimit, func(ctx context.Context) (answer, error) { return p.ben.allowed(ctx, "GET", payments) }); err != nil {
		return "", fmt.Errorf("as Ben: %w", err)
	}
	fact := ""
	if f := a.denial.Fact; f != nil {
		fact = fmt.Sprintf(" (%s is %s, wanted %s)", f.Name, f.Value, f.Wanted)
	}
	return a.String() + fact, nil
}

func (p *plot) openFlows(ctx context.Context) (string, error) {
	var err error
	if p.flows, err = p.anna.openAll(ctx); err != nil {
		return "", err
	}
	var said []string
	for _, f := range p.flows {
		n := int64(40)
		if f.name == "WebSocket" {
			n = 3
		}
		if err := f.beating(ctx, n); err != nil {
			return "", err
		}
	}
	for _, f := range p.flows {
		if err := f.alive(); err != nil {
			return "", err
		}
		said = append(said, fmt.Sprintf("%s %d", f.name, f.beats.Load()))
	}
	return "messages so far: " + strings.Join(said, ", "), nil
}

func (p *plot) firewallOff(ctx context.Context) (string, error) {
	start := time.Now()
	if err := p.anna.laptop.Firewall(false); err != nil {
		return "", err
	}
	said, err := cutAll(ctx, p.flows, start)
	if err != nil {
		return "", err
	}
	stopAll(p.flows)
	p.flows = nil
	a, err := p.anna.refused(ctx, "GET", customers, "posture_failed")
	if err != nil {
		return "", err
	}
	if a.denial.Fact == nil || !strings.Contains(a.denial.Fact.Name, "host_firewall") {
		return "", notSo("a fact that names host_firewall", "%+v", a.denial.Fact)
	}
	return fmt.Sprintf("after the file changed: %s; then %s", said, a), nil
}

func (p *plot) firewallOn(ctx context.Context) (string, error) {
	if err := p.anna.laptop.Firewall(true); err != nil {
		return "", err
	}
	_, took, err := until(ctx, afterLimit, func(ctx context.Context) (answer, error) { return p.anna.allowed(ctx, "GET", customers) })
	if err != nil {
		return "", err
	}
	// The list of apps reaches the laptop a moment after the first answer.
	_, _, err = until(ctx, afterLimit, func(ctx context.Context) (_ answer, err error) {
		p.flows, err = p.anna.openAll(ctx)
		return answer{}, err
	})
	return fmt.Sprintf("the CRM after %.0f ms; WebSocket, TCP and UDP opened anew", milliseconds(took)), err
}

func (p *plot) travel(ctx context.Context) (string, error) {
	start := time.Now()
	if err := p.anna.laptop.Router.Move(stage.AddressRefused); err != nil {
		return "", err
	}
	a, took, err := until(ctx, afterLimit, func(ctx context.Context) (answer, error) {
		return p.anna.refused(ctx, "GET", customers, "location_not_allowed")
	})
	if err != nil {
		return "", err
	}
	said, err := cutAll(ctx, p.flows, start)
	if err != nil {
		return "", err
	}
	stopAll(p.flows)
	p.flows = nil
	return fmt.Sprintf("%s after %.0f ms; cut: %s", a, milliseconds(took), said), nil
}

func (p *plot) home(ctx context.Context) (string, error) {
	if err := p.anna.laptop.Router.Move(p.anna.laptop.Home); err != nil {
		return "", err
	}
	_, took, err := until(ctx, afterLimit, func(ctx context.Context) (answer, error) { return p.anna.allowed(ctx, "GET", customers) })
	return fmt.Sprintf("after %.0f ms", milliseconds(took)), err
}

func (p *plot) dropRego(ctx context.Context) (string, error) {
	if err := p.stage.WritePolicy(regoFile, regoText); err != nil {
		return "", err
	}
	a, took, err := until(ctx, policyLimit, func(ctx context.Context) (answer, error) {
		return p.anna.refused(ctx, "GET", customers, "policy_denied")
	})
	if err != nil {
		return "", err
	}
	if a.denial.Message != regoMessage {
		return "", notSo("the file's own words", "%q", a.denial.Message)
	}
	// What the file does not name stays as it was.
	if _, err := p.anna.allowed(ctx, "GET", crm+"/api/me"); err != nil {
		return "", err
	}
	if err := p.stage.RemovePolicy(regoFile); err != nil {
		return "", err
	}
	_, back, err := until(ctx, policyLimit, func(ctx context.Context) (answer, error) { return p.anna.allowed(ctx, "GET", customers) })
	return fmt.Sprintf("%s after %.0f ms; removed again: back after %.0f ms", a, milliseconds(took), milliseconds(back)), err
}

func (p *plot) removeGroup(ctx context.Context) (string, error) {
	if err := p.stage.WritePolicy(stage.FileCRM, p.stage.CRMFile("support")); err != nil {
		return "", err
	}
	a, took, err := until(ctx, policyLimit, func(ctx context.Context) (answer, error) {
		return p.anna.refused(ctx, "GET", customers, "group_not_allowed")
	})
	if err != nil {
		return "", err
	}
	if _, err := p.ben.allowed(ctx, "GET", customers); err != nil {
		return "", fmt.Errorf("as Ben, whose group stayed: %w", err)
	}
	return fmt.Sprintf("%s after %.0f ms; Ben still 200", a, milliseconds(took)), nil
}

func (p *plot) revoke(ctx context.Context) (string, error) {
	// What is allowed until then, and what others have open.
	mine, err := p.anna.tcp(ctx)
	if err != nil {
		return "", err
	}
	defer mine.stop()
	others, err := p.ben.tcp(ctx)
	if err != nil {
		return "", err
	}
	defer others.stop()
	if err := errors.Join(mine.beating(ctx, 3), others.beating(ctx, 3)); err != nil {
		return "", err
	}
	start := time.Now()
	if _, err := p.stage.Gateway(ctx, "devices", "revoke", p.device, "--reason", "lost on the train"); err != nil {
		return "", err
	}
	cut, err := mine.cut(ctx)
	if err != nil {
		return "", err
	}
	var st localapi.Status
	_, _, err = until(ctx, afterLimit, func(ctx context.Context) (_ answer, err error) {
		if st, err = p.anna.status(ctx); err == nil && (st.State != localapi.StateRevoked || st.Denial == nil || st.Denial.Reason != "device_revoked") {
			err = notSo("the agent to say device_revoked", "state %s, %+v", st.State, st.Denial)
		}
		return answer{}, err
	})
	if err != nil {
		return "", err
	}
	if st.Tunnel != nil {
		return "", notSo("no tunnel", "%+v", *st.Tunnel)
	}
	if a, err := p.anna.do(ctx, "GET", customers); err == nil && a.status == 200 {
		return "", notSo("the CRM out of reach", "%s", a)
	}
	if err := others.beating(ctx, 3); err != nil {
		return "", fmt.Errorf("another laptop's flow: %w", err)
	}
	return fmt.Sprintf("the desk was cut %.0f ms after the command began; the agent says: %s %s; Ben's desk stays open",
		milliseconds(cut.Sub(start)), st.Denial.Message, st.Denial.Remedy), nil
}
