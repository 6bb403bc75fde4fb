package posture

import (
	"fmt"
	"path"
	"strings"

	"github.com/portvakt/portvakt/internal/wire"
)

// frontEnds is what the configuration files say about the firewall, to anyone.
type frontEnds struct {
	finding finding
	// claims is set when a front end says it is on: the kernel has to agree.
	claims string
}

// readFrontEnds judges ufw and firewalld, as far as files tell:
//
//   - ufw is on if etc/ufw/ufw.conf says so, and off if it says so. A
//     configuration whose program is gone (usr/sbin is there, ufw is not in it)
//     does not count. A default that accepts inbound connections fails.
//   - firewalld is on if it is configured and its service has living processes
//     (its control group is populated; only the service manager makes one).
//     The default zone "trusted" fails: it accepts everything.
//
// A front end that is on passes. One that is off fails, unless a service that
// loads rules by itself (nftables, netfilter-persistent, iptables) is enabled:
// then, and when there is no front end at all, only the kernel knows.
func readFrontEnds(t *tree) frontEnds {
	var off []string
	for _, probe := range []func(*tree) (name string, f finding){readUFW, readFirewalld} {
		name, f := probe(t)
		switch f.state {
		case "":
		case wire.SignalPass:
			return frontEnds{f, name}
		case wire.SignalFail:
			if f.value != name+": off" {
				return frontEnds{finding: f}
			}
			off = append(off, f.value)
		default:
			return frontEnds{finding: f}
		}
	}
	if len(off) == 0 || loaderEnabled(t) {
		return frontEnds{finding: unknown(CauseNeedsHelper)}
	}
	return frontEnds{finding: fail(strings.Join(off, ", "))}
}

// readUFW returns a zero finding if ufw is not installed.
func readUFW(t *tree) (string, finding) {
	const conf = "etc/ufw/ufw.conf"
	text, err := t.read(conf)
	if missing(err) || err == nil && !programThere(t, "ufw") {
		return "ufw", finding{}
	}
	if err != nil {
		return "ufw", unknown("error: " + err.Error())
	}
	vars, err := parseAssignments(text)
	if err != nil {
		return "ufw", unknown("error: " + conf + ":" + err.Error())
	}
	switch strings.ToLower(vars["ENABLED"]) {
	case "yes":
	case "no", "":
		return "ufw", fail("ufw: off")
	default:
		return "ufw", unknown("error: " + conf + ": ENABLED is neither yes nor no")
	}
	const defaults = "etc/default/ufw"
	text, err = t.read(defaults)
	if missing(err) {
		return "ufw", pass("ufw: on")
	}
	if err != nil {
		return "ufw", unknown("error: " + err.Error())
	}
	if vars, err = parseAssignments(text); err != nil {
		return "ufw", unknown("error: " + defaults + ":" + err.Error())
	}
	if strings.EqualFold(vars["DEFAULT_INPUT_POLICY"], "ACCEPT") {
		return "ufw", fail("ufw: on, but it accepts inbound connections by default")
	}
	return "ufw", pass("ufw: on")
}

// readFirewalld returns a zero finding if firewalld is not installed.
func readFirewalld(t *tree) (string, finding) {
	const conf = "etc/firewalld/firewalld.conf"
	text, err := t.read(conf)
	if missing(err) {
		return "firewalld", finding{}
	}
	if err != nil {
		return "firewalld", unknown("error: " + err.Error())
	}
	if !serviceAlive(t, "firewalld.service") {
		return "firewalld", fail("firewalld: off")
	}
	for _, l := range strings.Split(text, "\n") {
		if zone, ok := strings.CutPrefix(strings.TrimSpace(l), "DefaultZone="); ok && strings.TrimSpace(zone) == "trusted" {
			return "firewalld", fail("firewalld: on, but its default zone accepts everything")
		}
	}
	return "firewalld", pass("firewalld: on")
}

func programThere(t *tree, name string) bool {
	for _, dir := range []string{"usr/sbin", "sbin", "usr/bin"} {
		if t.exists(path.Join(dir, name)) {
			return true
		}
	}
	return !t.exists("usr/sbin") // a tree without programs, of a test or demo
}

func serviceAlive(t *tree, unit string) bool {
	for _, group := range []string{"sys/fs/cgroup/system.slice/", "sys/fs/cgroup/unified/system.slice/"} {
		if text, err := t.read(group + unit + "/cgroup.events"); err == nil && strings.Contains("\n"+text, "\npopulated 1\n") {
			return true
		}
	}
	return false
}

func loaderEnabled(t *tree) bool {
	for _, target := range []string{"sysinit.target.wants", "basic.target.wants", "multi-user.target.wants", "network-pre.target.wants"} {
		for _, unit := range []string{"nftables", "netfilter-persistent", "iptables", "ip6tables"} {
			if t.exists("etc/systemd/system/" + target + "/" + unit + ".service") {
				return true
			}
		}
	}
	return false
}

// parseAssignments reads a file of shell assignments the way a shell would, as
// long as nothing in it would have to be executed or expanded; anything else is
// an error that names the line. The last assignment of a name counts.
func parseAssignments(text string) (map[string]string, error) {
	vars := map[string]string{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.Trim(line, " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		name, rest, ok := strings.Cut(line, "=")
		if !ok || !isName(name) {
			return nil, fmt.Errorf("%d: not an assignment", i+1)
		}
		value, rest, ok := shellWord(rest)
		// shellWord ends at a space or the line's end, so that a comment is one.
		if rest = strings.TrimLeft(rest, " \t"); !ok || rest != "" && rest[0] != '#' {
			return nil, fmt.Errorf("%d: not a plain value", i+1)
		}
		vars[name] = value
	}
	return vars, nil
}

func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// shellWord reads one word that is wholly quoted or wholly plain.
func shellWord(s string) (word, rest string, ok bool) {
	if s != "" && (s[0] == '"' || s[0] == '\'') {
		word, rest, ok = strings.Cut(s[1:], s[:1])
		if s[0] == '"' && strings.ContainsAny(word, "$`\\") {
			return "", "", false
		}
		return word, rest, ok && (rest == "" || rest[0] == ' ' || rest[0] == '\t')
	}
	end := strings.IndexAny(s, " \t")
	if end < 0 {
		end = len(s)
	}
	word = s[:end]
	for i := range len(word) {
		c := word[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte("$`\\\"'|&;<>()*?[]~{}!#", c) >= 0 {
			return "", "", false
		}
	}
	return word, s[end:], true
}
