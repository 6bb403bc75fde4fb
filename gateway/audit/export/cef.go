package export

import (
	"strconv"
	"strings"
	"unicode"

	"github.com/portvakt/portvakt/gateway/audit"
)

// hidden are characters that a terminal, a line reader or an eye is misled by.
func hidden(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

// severity of CEF, 0 to 10: what somebody should look at is above 5.
func severity(r *audit.Record) int {
	switch kindOf(r) {
	case audit.KindLost, audit.KindSinkGap, audit.KindTorn, audit.KindRecovered:
		return 9
	case audit.KindLockdown, audit.KindBreakGlass, audit.KindErase:
		return 8
	case audit.KindRevoke, audit.KindApproval, audit.KindFlowCut, audit.KindEnrollRefused, audit.KindConnectRefused, audit.KindLoginRefused, audit.KindLogoutRefused, audit.KindPostureRefused, audit.KindPolicyRefused:
		return 6
	case audit.KindUpstreamError:
		return 4
	}
	if r.Allow != nil && !*r.Allow {
		return 5
	}
	return 2
}

var (
	cefHeader    = strings.NewReplacer(`\`, `\\`, `|`, `\|`)
	cefExtension = strings.NewReplacer(`\`, `\\`, `=`, `\=`)
)

// CEF is the Common Event Format, version 0 (ArcSight). Syslog's header comes
// from whoever sends it.
func CEF(to []byte, node string, _ []byte, r *audit.Record) ([]byte, error) {
	name := r.Message
	if name == "" {
		name = strings.ReplaceAll(string(r.Kind), "_", " ")
	}
	var b strings.Builder
	b.WriteString("CEF:0|Portvakt|Gateway|1|")
	b.WriteString(cefHeader.Replace(oneLine(string(r.Kind))))
	b.WriteString("|" + cefHeader.Replace(oneLine(name)) + "|" + strconv.Itoa(severity(r)) + "|")
	first := true
	put := func(key, value string) {
		if value == "" {
			return
		}
		if !first {
			b.WriteByte(' ')
		}
		first = false
		b.WriteString(key + "=" + cefExtension.Replace(oneLine(value)))
	}
	label := func(key, name, value string) {
		if value != "" {
			put(key+"Label", name)
			put(key, value)
		}
	}
	put("rt", strconv.FormatInt(r.Time.UnixMilli(), 10))
	if first, last, ok := span(r); ok {
		put("cnt", r.Detail["count"])
		put("start", strconv.FormatInt(first, 10))
		put("end", strconv.FormatInt(last, 10))
	}
	put("dvchost", node)
	put("externalId", strconv.FormatUint(r.Seq, 10))
	if r.Allow != nil {
		put("act", map[bool]string{true: "allowed", false: "denied"}[*r.Allow])
	}
	put("reason", r.Reason)
	put("outcome", r.Outcome)
	if r.Actor == "" {
		put("suser", subject(r))
	} else {
		put("suser", r.Actor)
		put("duser", subject(r))
	}
	put("src", r.Remote)
	put("deviceExternalId", r.Device)
	put("app", r.App)
	put("dhost", r.Host)
	put("requestMethod", r.Method)
	put("request", r.Path)
	put("PortvaktRequestHash", r.RequestHash)
	put("PortvaktExpired", strings.Join(r.Expired, " ")) // src is an address, and nothing else
	put("PortvaktUnreadable", strings.Join(r.Unreadable, " "))
	put("in", number(r.BytesIn))
	put("out", number(r.BytesOut))
	label("cs1", "decision", r.Decision)
	label("cs2", "session", r.Session)
	label("cs3", "flow", r.Flow)
	label("cs4", "rule", r.Rule)
	label("cs5", "revision", r.Revision)
	if f := r.Fact; f != nil {
		label("cs6", "fact", f.Name+": "+f.Value+" (wanted: "+f.Wanted+")")
	}
	label("cn1", "status", number(int64(r.Status)))
	label("cn2", "duration_ms", number(r.DurationMS))
	put("PortvaktPerson", r.Person)
	put("PortvaktDetail", detail(r)) // last: a receiver may cut what is long
	b.WriteByte('\n')
	return append(to, b.String()...), nil
}
