package posture

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/portvakt/portvakt/internal/wire"
)

// filtering says for which families the kernel refuses inbound packets that no
// rule lets through.
type filtering struct{ v4, v6 bool }

// kernelFirewall asks the kernel of this network namespace for its nftables
// rules (CAP_NET_ADMIN). iptables-nft and what ufw and firewalld load by it are
// among them; rules of the old iptables are not.
func kernelFirewall() (filtering, error) {
	conn, err := nftables.New()
	if err != nil {
		return filtering{}, fmt.Errorf("reading the kernel's rules: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return filtering{}, fmt.Errorf("reading the kernel's rules: %w", err)
	}
	r := ruleset{chains: map[chainKey]*nftables.Chain{}, seen: map[chainKey]outcome{}, rules: func(c *nftables.Chain) ([]*nftables.Rule, error) { return conn.GetRules(c.Table, c) }}
	for _, c := range chains {
		r.chains[chainKey{c.Table.Family, c.Table.Name, c.Name}] = c
	}
	return r.judge()
}

type chainKey struct {
	family      nftables.TableFamily
	table, name string
}

// ruleset is the kernel's, as far as it was read.
type ruleset struct {
	chains map[chainKey]*nftables.Chain
	rules  func(*nftables.Chain) ([]*nftables.Rule, error)
	seen   map[chainKey]outcome // of chains followed already
}

// judge looks at every filter chain on the input hook. A packet has to pass all
// of them, so that one that refuses by default is enough for its family.
func (r ruleset) judge() (filtering, error) {
	var f filtering
	for key, c := range r.chains {
		if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookInput || c.Type != nftables.ChainTypeFilter {
			continue
		}
		switch key.family {
		case nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyINet:
		default:
			continue // netdev and bridge have other hooks of that number
		}
		end, err := r.follow(key, 0)
		if err != nil {
			return filtering{}, err
		}
		if end == goesOn && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			end = refuses
		}
		if end == refuses {
			f.v4 = f.v4 || key.family != nftables.TableFamilyIPv6
			f.v6 = f.v6 || key.family != nftables.TableFamilyIPv4
		}
	}
	return f, nil
}

// outcome is what becomes of a packet that no conditional rule matches.
type outcome int

const (
	goesOn outcome = iota // to the caller's next rule, or the policy
	accepts
	refuses
)

// follow is walk with a memory: chains may be jumped to any number of times.
func (r ruleset) follow(key chainKey, depth int) (outcome, error) {
	if end, ok := r.seen[key]; ok {
		return end, nil
	}
	end, err := r.walk(key, depth)
	if err == nil {
		r.seen[key] = end
	}
	return end, err
}

// walk walks a chain's unconditional rules. A conditional rule may refuse or
// accept what it matches; neither makes a default.
func (r ruleset) walk(key chainKey, depth int) (outcome, error) {
	if depth > 16 { // nftables' own limit of jumps
		return goesOn, errors.New("reading the kernel's rules: chains are nested too deep")
	}
	c := r.chains[key]
	if c == nil {
		return goesOn, fmt.Errorf("reading the kernel's rules: chain %s is gone", key.name)
	}
	rules, err := r.rules(c)
	if err != nil {
		return goesOn, fmt.Errorf("reading the kernel's rules: %w", err)
	}
	for _, rule := range rules {
		verdict := unconditional(rule.Exprs)
		switch v := verdict.(type) {
		case nil:
		case *expr.Reject:
			return refuses, nil
		case *expr.Verdict:
			switch v.Kind {
			case expr.VerdictDrop:
				return refuses, nil
			case expr.VerdictAccept:
				return accepts, nil
			case expr.VerdictReturn:
				return goesOn, nil
			case expr.VerdictJump, expr.VerdictGoto:
				end, err := r.follow(chainKey{key.family, key.table, v.Chain}, depth+1)
				if err != nil || end != goesOn || v.Kind == expr.VerdictGoto {
					return end, err
				}
			}
		}
	}
	return goesOn, nil
}

// unconditional returns the verdict of a rule that every packet meets, or nil.
// An expression that is not known counts as a condition.
func unconditional(exprs []expr.Any) expr.Any {
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Reject, *expr.Verdict:
			return e
		case *expr.Target: // iptables-nft
			if e.Name == "REJECT" {
				return &expr.Reject{}
			}
			if e.Name != "LOG" && e.Name != "NFLOG" {
				return nil
			}
		default:
			return nil
		}
	}
	return nil
}

// hostFirewall joins what the files say with the kernel's rules, which win. A
// machine without an IPv6 address needs no IPv6 filter.
func hostFirewall(t *tree, front frontEnds, kernel func() (filtering, error)) finding {
	f, err := kernel()
	if err != nil {
		return unknown("error: " + err.Error())
	}
	name := front.claims
	if name == "" {
		name = "nftables"
	}
	switch {
	case f.v4 && (f.v6 || !hasIPv6(t)):
		return pass(name + ": on, the kernel filters inbound connections")
	case oldTables(t):
		return unknown("error: the rules are those of the old iptables and cannot be read")
	case f.v4:
		return fail(name + ": inbound IPv6 is not filtered")
	case front.claims != "":
		return fail(front.claims + ": on in its configuration, but no filter is loaded")
	case front.finding.state == wire.SignalFail:
		return front.finding
	}
	return fail("nftables: no inbound filter is loaded")
}

// hasIPv6 says whether an interface besides lo has an IPv6 address.
func hasIPv6(t *tree) bool {
	text, err := t.read("proc/net/if_inet6")
	if err != nil {
		return !missing(err) // unreadable: take it that there is one
	}
	for _, l := range strings.Split(text, "\n") {
		if f := strings.Fields(l); len(f) == 6 && f[5] != "lo" {
			return true
		}
	}
	return false
}

// oldTables says whether the legacy iptables filter table is in use.
func oldTables(t *tree) bool {
	for _, name := range []string{"proc/net/ip_tables_names", "proc/net/ip6_tables_names"} {
		if text, err := t.read(name); err == nil && strings.Contains("\n"+text, "\nfilter\n") {
			return true
		}
	}
	return false
}
