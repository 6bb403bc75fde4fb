package posture_test

import (
	"errors"
	"runtime"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/agent/posture"
)

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

func jump(to string) []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictJump, Chain: to}}
}

// fromLo accepts what comes in on interface 1, a condition.
func fromLo(k expr.VerdictKind) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(1)},
		&expr.Verdict{Kind: k},
	}
}

type chain struct {
	family nftables.TableFamily
	hook   *nftables.ChainHook
	policy nftables.ChainPolicy
	rules  [][]expr.Any
	more   map[string][][]expr.Any // further, regular chains
}

var (
	inet = nftables.TableFamilyINet
	drop = nftables.ChainPolicyDrop
	open = nftables.ChainPolicyAccept
)

// TestKernelFirewall loads real rules into a network namespace of the test's.
func TestKernelFirewall(t *testing.T) {
	both, none := posture.Filtering{V4: true, V6: true}, posture.Filtering{}
	in := nftables.ChainHookInput
	reject := []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: 3}}
	for name, c := range map[string]struct {
		chains []chain
		want   posture.Filtering
	}{
		"no rules":                {nil, none},
		"policy drop":             {[]chain{{inet, in, drop, nil, nil}}, both},
		"policy accept":           {[]chain{{inet, in, open, [][]expr.Any{fromLo(expr.VerdictDrop)}, nil}}, none},
		"exceptions, policy drop": {[]chain{{inet, in, drop, [][]expr.Any{fromLo(expr.VerdictAccept)}, nil}}, both},
		"ends in reject":          {[]chain{{inet, in, open, [][]expr.Any{fromLo(expr.VerdictAccept), reject}, nil}}, both},
		"ends in counted drop":    {[]chain{{inet, in, open, [][]expr.Any{{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}}, nil}}, both},
		"drop behind accept":      {[]chain{{inet, in, open, [][]expr.Any{verdict(expr.VerdictAccept), verdict(expr.VerdictDrop)}, nil}}, none},
		"accept before policy":    {[]chain{{inet, in, drop, [][]expr.Any{verdict(expr.VerdictAccept)}, nil}}, none},
		"jump to drop":            {[]chain{{inet, in, open, [][]expr.Any{jump("a")}, map[string][][]expr.Any{"a": {jump("b")}, "b": {verdict(expr.VerdictDrop)}}}}, both},
		"jump to accept":          {[]chain{{inet, in, drop, [][]expr.Any{jump("a")}, map[string][][]expr.Any{"a": {verdict(expr.VerdictAccept)}}}}, none},
		"jump that returns":       {[]chain{{inet, in, drop, [][]expr.Any{jump("a")}, map[string][][]expr.Any{"a": {verdict(expr.VerdictReturn), verdict(expr.VerdictAccept)}}}}, both},
		"output only":             {[]chain{{inet, nftables.ChainHookOutput, drop, nil, nil}}, none},
		"IPv4 only":               {[]chain{{nftables.TableFamilyIPv4, in, drop, nil, nil}}, posture.Filtering{V4: true}},
		"both by themselves":      {[]chain{{nftables.TableFamilyIPv4, in, drop, nil, nil}, {nftables.TableFamilyIPv6, in, drop, nil, nil}}, both},
		"an open one beside":      {[]chain{{nftables.TableFamilyIPv4, in, open, [][]expr.Any{verdict(expr.VerdictAccept)}, nil}, {inet, in, drop, nil, nil}}, both},
	} {
		t.Run(name, func(t *testing.T) {
			inNamespace(t, func() error {
				if err := load(c.chains); err != nil {
					return err
				}
				got, err := posture.KernelFirewall()
				if err == nil && got != c.want {
					t.Errorf("got %+v, want %+v", got, c.want)
				}
				return err
			})
		})
	}
}

// inNamespace runs f on a thread of a new network namespace, which dies with it.
func inNamespace(t *testing.T, f func() error) {
	t.Helper()
	type result struct {
		skip bool
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{true, err}
			return
		}
		done <- result{false, f()}
	}()
	switch r := <-done; {
	case r.skip:
		t.Skipf("needs root with CAP_SYS_ADMIN for a network namespace: %v", r.err)
	case errors.Is(r.err, unix.EPROTONOSUPPORT) || errors.Is(r.err, unix.EOPNOTSUPP):
		t.Skipf("needs a kernel with nf_tables: %v", r.err)
	case r.err != nil:
		t.Fatal(r.err)
	}
}

func load(chains []chain) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	for _, c := range chains {
		table := conn.AddTable(&nftables.Table{Family: c.family, Name: "t"})
		base := conn.AddChain(&nftables.Chain{Name: "base", Table: table, Type: nftables.ChainTypeFilter, Hooknum: c.hook, Priority: nftables.ChainPriorityFilter, Policy: &c.policy})
		byName := map[string]*nftables.Chain{}
		for name := range c.more {
			byName[name] = conn.AddChain(&nftables.Chain{Name: name, Table: table})
		}
		for name, rules := range c.more {
			for _, r := range rules {
				conn.AddRule(&nftables.Rule{Table: table, Chain: byName[name], Exprs: r})
			}
		}
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: base, Exprs: r})
		}
	}
	return conn.Flush()
}

func TestKernelWinsOverFiles(t *testing.T) {
	both, v4, none := posture.Filtering{V4: true, V6: true}, posture.Filtering{V4: true}, posture.Filtering{}
	for name, c := range map[string]struct {
		tree   string
		files  map[string]string
		kernel posture.Filtering
		err    error
		want   string
	}{
		"ufw on and loaded":        {"luks-ufw-on", nil, both, nil, "pass ufw: on, the kernel filters inbound connections"},
		"ufw on, nothing loaded":   {"luks-ufw-on", nil, none, nil, "fail ufw: on in its configuration, but no filter is loaded"},
		"ufw off, own rules":       {"plain-ufw-off", nil, both, nil, "pass nftables: on, the kernel filters inbound connections"},
		"ufw off, nothing":         {"plain-ufw-off", nil, none, nil, "fail ufw: off"},
		"no front end, own rules":  {"home-plain", nil, both, nil, "pass nftables: on, the kernel filters inbound connections"},
		"no front end, nothing":    {"home-plain", nil, none, nil, "fail nftables: no inbound filter is loaded"},
		"no IPv6 filter or need":   {"home-plain", map[string]string{"proc/net/if_inet6": "00000000000000000000000000000001 01 80 10 80       lo\n"}, v4, nil, "pass nftables: on, the kernel filters inbound connections"},
		"no IPv6 filter but IPv6":  {"home-plain", map[string]string{"proc/net/if_inet6": "fe800000000000000000000000000001 02 40 20 80     eth0\n"}, v4, nil, "fail nftables: inbound IPv6 is not filtered"},
		"old iptables":             {"luks-ufw-on", map[string]string{"proc/net/ip_tables_names": "nat\nfilter\n"}, none, nil, "unknown error: the rules are those of the old iptables and cannot be read"},
		"the kernel does not tell": {"luks-ufw-on", nil, none, errors.New("no"), "unknown error: no"},
	} {
		t.Run(name, func(t *testing.T) {
			root, _ := unpack(t, c.tree)
			for f, text := range c.files {
				write(t, root+"/"+f, text)
			}
			if got := says(posture.WithKernel(root, c.kernel, c.err)); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
