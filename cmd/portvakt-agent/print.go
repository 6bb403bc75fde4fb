package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/agent/posture"
	"github.com/portvakt/portvakt/internal/wire"
)

// width is what a page of any terminal holds.
const width = 80

const (
	green  = "32"
	red    = "31"
	yellow = "33"
)

// reasonLockedDown is the gateway's Reason for what a lockdown refuses.
const reasonLockedDown = "locked_down"

// paper prints for people.
type paper struct {
	out   io.Writer
	color bool
	now   func() time.Time
}

func newPaper(w io.Writer) *paper {
	f, ok := w.(*os.File)
	return &paper{out: w, now: time.Now, color: ok && os.Getenv("NO_COLOR") == "" && term.IsTerminal(int(f.Fd()))}
}

func (p *paper) paint(color, s string) string {
	if !p.color || color == "" || s == "" {
		return s
	}
	return "\x1b[" + color + "m" + s + "\x1b[0m"
}

// clean makes text of others safe to show: a terminal obeys control characters.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			return '?'
		}
		return r
	}, s)
}

// item prints a name and its text, which goes on below itself when it is long.
func (p *paper) item(name, text, color string) {
	const indent = 12
	for i, line := range wrap(clean(text), width-indent) {
		if i > 0 {
			name = ""
		}
		fmt.Fprintf(p.out, "%-*s%s\n", indent, name, p.paint(color, line))
	}
}

func wrap(s string, room int) []string {
	var lines []string
	var line string
	for _, word := range strings.Fields(s) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > room {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// connection says in one sentence how the connection is.
func connection(st localapi.Status) string {
	switch st.State {
	case localapi.StateConnected:
		return "connected"
	case localapi.StateRevoked:
		s := "refused by the gateway"
		if d := st.Denial; d != nil {
			s = strings.TrimSpace("refused: " + d.Message + " " + d.Remedy)
		}
		return s
	}
	if t := st.Trouble; t != nil {
		return strings.TrimSpace("not connected: " + t.Message + " " + t.Remedy)
	}
	return "connecting"
}

func (p *paper) status(st *localapi.Status) {
	color := green
	switch st.State {
	case localapi.StateRevoked:
		color = red
	case localapi.StateWaiting, localapi.StateConnecting:
		color = yellow
	}
	if st.State == localapi.StateConnected || st.State == localapi.StateConnecting {
		p.item("connection", connection(*st)+", "+p.since(st.Since), color)
	} else { // the sentence has its own end
		p.item("connection", connection(*st), color)
		p.item("", p.since(st.Since), "")
	}
	if st.Limited {
		p.item("login", "another user of this laptop is logged in", "")
		return
	}
	if d := st.Denial; d != nil && d.Fact != nil {
		p.item("", fact(d.Fact), "")
	}
	if st.RetryAt != nil && st.State != localapi.StateConnected {
		p.item("", "next try at "+st.RetryAt.Local().Format("15:04:05"), "")
	}
	p.item("gateway", st.Gateway, "")
	device := st.DeviceID
	if st.CertificateExpiresAt != nil {
		device += ", certificate until " + clock(*st.CertificateExpiresAt)
	}
	p.item("device", device, "")
	p.person(st)
	p.checks(st.Posture)
	p.network(st)
	if s := st.ClockSkewSeconds; s != 0 {
		way := "ahead of"
		if s < 0 {
			way, s = "behind", -s
		}
		p.item("clock", fmt.Sprintf("this laptop's clock is %s %s the gateway's; set it right", time.Duration(s)*time.Second, way), yellow)
	}
}

// person prints who is logged in, and where the gateway sees them.
func (p *paper) person(st *localapi.Status) {
	if s := st.Session; s != nil {
		who := s.Name
		if len(s.Groups) > 0 {
			who += " (" + strings.Join(s.Groups, ", ") + ")"
		}
		p.item("login", who+" until "+clock(s.ExpiresAt), "")
	} else if st.State != localapi.StateRevoked { // no login would help there
		p.item("login", "nobody; log in with: portvakt-agent login", yellow)
	}
	if f := st.Finish; f != nil {
		p.item("finish", "until "+clock(f.Until)+": "+f.Message, yellow)
	}
	if l := st.Location; l.Address != "" || l.Country != "" {
		country := l.Country
		if country == "" {
			country = "country unknown"
		}
		p.item("location", strings.TrimSpace(l.Address+" "+country), "")
	}
}

// causes say why a check has no answer, at most width-38 letters each.
var causes = map[string]string{
	posture.CauseNotSupported: "not checked on this system",
	posture.CauseNeedsHelper:  "no posture helper answers: tell IT",
}

// closed names the apps that a lockdown refuses.
func (p *paper) closed(items []localapi.App) {
	var names []string
	for _, a := range items {
		if a.Denial != nil && !a.Allowed && a.Denial.Reason == reasonLockedDown {
			names = append(names, a.Name)
		}
	}
	switch len(names) {
	case 0:
		return
	case len(items):
		names = []string{"everything"}
	}
	p.item("closed", "by your company: "+strings.Join(names, ", ")+" ("+reasonLockedDown+")", red)
}

func (p *paper) checks(posture []wire.Signal) {
	for i, s := range posture {
		name := ""
		if i == 0 {
			name = "checks"
		}
		color := map[string]string{wire.SignalPass: green, wire.SignalFail: red}[s.State]
		value := s.Value
		if s.State == wire.SignalUnknown && causes[value] != "" {
			value = causes[value]
		}
		fmt.Fprintf(p.out, "%-12s%-17s%s  %s\n", name, clean(s.Name), p.paint(color, fmt.Sprintf("%-7s", clean(s.State))), cut(clean(value), width-38))
	}
}

// network prints the roads: the tunnel, and what programs on the laptop use.
func (p *paper) network(st *localapi.Status) {
	if t := st.Tunnel; t != nil {
		text := fmt.Sprintf("%s, %s in, %s out", t.Endpoint, size(t.RxBytes), size(t.TxBytes))
		if t.LastHandshake != nil {
			text += ", handshake " + p.ago(*t.LastHandshake)
		}
		if t.PostQuantum {
			text += ", post-quantum"
		} else {
			text += ", not post-quantum"
		}
		p.item("tunnel", text, "")
		p.transport(t)
	}
	if st.Mode == localapi.ModeTUN {
		p.item("mode", "network interface", "")
	}
	if d := st.DNS; d != nil {
		if d.Problem != "" {
			p.item("DNS", d.Problem, yellow)
		} else if d.Manager != "" {
			p.item("DNS", "the apps' names resolve through "+d.Manager, "")
		}
	}
	if st.Proxy != nil {
		p.item("proxy", "http://"+st.Proxy.Address+" (HTTP and SOCKS5)", "")
		p.item("PAC file", st.Proxy.PAC, "")
	}
}

func (p *paper) transport(t *localapi.Tunnel) {
	text, color := "UDP", ""
	if t.Transport == "websocket" {
		text, color = "WebSocket", yellow
	}
	if t.TransportReason != "" {
		text, color = text+": "+t.TransportReason, yellow
	}
	p.item("transport", text, color)
	p.item("inner MTU", fmt.Sprintf("%d bytes", t.MTU), "")
}

func (p *paper) apps(items []localapi.App) {
	if len(items) == 0 {
		fmt.Fprintln(p.out, "No apps are visible to this laptop now. See: portvakt-agent status")
		return
	}
	name := 4
	for _, a := range items {
		name = max(name, utf8.RuneCountInString(clean(a.Name)))
	}
	name = min(name, 24)
	for _, a := range items {
		verdict := p.paint(green, "allowed")
		if !a.Allowed {
			verdict = p.paint(red, "refused")
		}
		where := strings.Join(places(a), ", ")
		lead := name + 2 + len("allowed") + 2
		for i, line := range wrap(clean(where), width-lead) {
			if i == 0 {
				fmt.Fprintf(p.out, "%-*s  %s  %s\n", name, clean(a.Name), verdict, line)
			} else {
				fmt.Fprintf(p.out, "%*s%s\n", lead, "", line)
			}
		}
		if !a.Allowed && a.Denial != nil {
			p.denial(a.Denial, name+2)
		}
		p.finish(a, name+2)
	}
}

// places says where the app is found: web apps by their own names, others at
// their loopback ports.
func places(a localapi.App) []string {
	var s []string
	if a.Protocol == "http" {
		for _, h := range a.Hosts {
			s = append(s, "https://"+h)
		}
		return s
	}
	for _, m := range a.Local {
		s = append(s, fmt.Sprintf("%s (%s %d)", m.Local, a.Protocol, m.Port))
	}
	return s
}

func (p *paper) denial(d *wire.Denial, indent int) {
	lines := []string{d.Message}
	if d.Fact != nil {
		lines = append(lines, fact(d.Fact))
	}
	for _, text := range append(lines, d.Remedy) {
		if text == "" {
			continue
		}
		for _, line := range wrap(clean(text), width-indent) {
			fmt.Fprintf(p.out, "%*s%s\n", indent, "", line)
		}
	}
}

func fact(f *wire.Fact) string {
	s := f.Name + " is " + f.Value
	if f.Value == "" {
		s = f.Name + " is not known"
	}
	if f.Wanted != "" {
		s += "; wanted: " + f.Wanted
	}
	return s
}

func (p *paper) why(app string, d *wire.Denial) {
	if d.App != "" {
		app = d.App
	}
	if d.Allow {
		p.item(clean(app), "allowed: "+d.Message, green)
		return
	}
	fmt.Fprintf(p.out, "%s  %s (%s)\n", clean(app), p.paint(red, "refused"), clean(d.Reason))
	p.denial(d, 2)
	if d.Decision != "" {
		fmt.Fprintf(p.out, "  decision %s\n", clean(d.Decision))
	}
}

// finish says until when what is open of an app goes on.
func (p *paper) finish(a localapi.App, indent int) {
	if a.FinishBy != nil {
		fmt.Fprintf(p.out, "%*s%s\n", indent, "", p.paint(yellow, "what is open may be finished until "+clock(*a.FinishBy)))
	}
}

func cut(s string, room int) string {
	r := []rune(s)
	if len(r) <= room {
		return s
	}
	return string(r[:room-3]) + "..."
}

// clock prints a time as a person on this laptop reads it.
func clock(t time.Time) string {
	t = t.Local()
	if now := time.Now(); t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format("15:04")
	}
	return t.Format("2006-01-02 15:04")
}

func (p *paper) since(t time.Time) string { return "since " + clock(t) }

func (p *paper) ago(t time.Time) string {
	return p.now().Sub(t).Round(time.Second).String() + " ago"
}

func size(n uint64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}
