package export

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/portvakt/portvakt/gateway/audit"
)

// ocsfVersion is the schema whose classes are used below.
const ocsfVersion = "1.3.0"

// class is an OCSF event class and what of it a record is.
type class struct {
	uid, activity int
	name          string
}

// Activities of OCSF. The numbers belong to the classes they are used with.
const (
	other = 99

	networkOpen, networkClose, networkReset, networkFail, networkRefuse = 1, 2, 3, 4, 5

	logon, logoff = 1, 2

	entityCreate, entityRead, entityUpdate, entityDelete, entityEnroll, entityEnable, entityDisable = 1, 2, 3, 4, 6, 8, 9

	appStart, appStop, appUpdate = 3, 4, 8

	configLog = 1
)

// httpMethods are the activities of HTTP Activity.
var httpMethods = map[string]int{"CONNECT": 1, "DELETE": 2, "GET": 3, "HEAD": 4, "OPTIONS": 5, "POST": 6, "PUT": 7, "TRACE": 8}

func classOf(r *audit.Record) class {
	network := func(a int) class { return class{4001, a, "Network Activity"} }
	auth := func(a int) class { return class{3002, a, "Authentication"} }
	entity := func(a int) class { return class{3004, a, "Entity Management"} }
	app := func(a int) class { return class{6002, a, "Application Lifecycle"} }
	switch kindOf(r) {
	case audit.KindDecision:
		a, ok := httpMethods[r.Method]
		if !ok {
			a = other
		}
		return class{4002, a, "HTTP Activity"}
	case audit.KindFlowOpen:
		if r.Allow != nil && !*r.Allow {
			return network(networkRefuse)
		}
		return network(networkOpen)
	case audit.KindFlowClose:
		return network(networkClose)
	case audit.KindFlowDrain:
		return network(other)
	case audit.KindFlowCut:
		return network(networkReset)
	case audit.KindUpstreamError:
		return network(networkFail)
	case audit.KindLogin, audit.KindLoginRefused, audit.KindResume:
		return auth(logon)
	case audit.KindLogout, audit.KindLogoutRefused, audit.KindSessionEnd:
		return auth(logoff)
	case audit.KindEnroll, audit.KindEnrollRefused:
		return entity(entityEnroll)
	case audit.KindInvite:
		return entity(entityCreate)
	case audit.KindRenew, audit.KindConnect, audit.KindConnectRefused:
		return entity(entityUpdate)
	case audit.KindRevoke:
		return entity(entityDisable)
	case audit.KindLockdown:
		if r.Outcome == "off" {
			return entity(entityEnable)
		}
		return entity(entityDisable)
	case audit.KindApproval:
		return entity(entityUpdate)
	case audit.KindBreakGlass:
		return entity(entityEnable)
	case audit.KindErase:
		return entity(entityDelete)
	case audit.KindAdmin, audit.KindWhy:
		return entity(entityRead)
	case audit.KindPosture, audit.KindPostureRefused, audit.KindLocation:
		return class{5002, configLog, "Device Config State"}
	case audit.KindStart:
		return app(appStart)
	case audit.KindStop:
		return app(appStop)
	case audit.KindPolicy, audit.KindPolicyRefused:
		return app(appUpdate)
	default: // the log about itself, and what is new
		return class{6002, other, "Application Lifecycle"}
	}
}

// failed are the kinds that say that something did not succeed.
func failed(r *audit.Record) bool {
	return strings.HasSuffix(string(kindOf(r)), "_refused") || r.Kind == audit.KindUpstreamError || r.Allow != nil && !*r.Allow
}

type object = map[string]any

// OCSF is an event of the Open Cybersecurity Schema Framework, as JSON on one
// line. What the schema has no place for is under unmapped.
func OCSF(to []byte, node string, _ []byte, r *audit.Record) ([]byte, error) {
	c := classOf(r)
	statusID := 1 // success
	if failed(r) {
		statusID = 2
	}
	e := object{
		"class_uid": c.uid, "class_name": c.name, "category_uid": c.uid / 1000,
		"activity_id": c.activity, "type_uid": c.uid*100 + c.activity,
		"severity_id": ocsfSeverity(r), "status_id": statusID, "time": r.Time.UnixMilli(),
		"metadata": object{
			"version": ocsfVersion, "log_name": "decisions", "uid": node + ":" + number(int64(r.Seq)), "sequence": r.Seq, "event_code": string(r.Kind),
			"product": object{"name": "Portvakt Gateway", "vendor_name": "Portvakt"},
		},
	}
	set := func(key string, value any, there bool) {
		if there {
			e[key] = value
		}
	}
	set("message", r.Message, r.Message != "")
	set("status_code", r.Reason, r.Reason != "")
	set("status_detail", r.Outcome, r.Outcome != "")
	set("duration", r.DurationMS, r.DurationMS != 0)
	if r.Allow != nil {
		action := 1
		if !*r.Allow {
			action = 2
		}
		e["action_id"] = action
	}
	if first, last, ok := span(r); ok {
		count, _ := strconv.ParseUint(r.Detail["count"], 10, 64) // the log wrote it
		e["count"], e["start_time"], e["end_time"] = count, first, last
	}
	if user := person(r); user != nil {
		e["actor"] = object{"user": user}
		set("user", user, c.uid == 3002)
	}
	set("src_endpoint", pairs("ip", r.Remote, "uid", r.Device), r.Remote != "" || r.Device != "" && r.Kind != audit.KindInvite) // it is not there yet
	set("device", pairs("uid", r.Device, "ip", r.Remote), r.Device != "" && c.uid == 5002)
	set("dst_endpoint", pairs("hostname", r.Host, "svc_name", r.App), c.uid/1000 == 4)
	if c.uid == 3004 {
		e["entity"] = object{"type": "device", "uid": r.Device}
		if r.Device == "" || r.Kind == audit.KindInvite {
			e["entity"] = pairs("type", string(r.Kind), "name", r.Detail["name"]+r.Detail["at"], "uid", r.Device)
		}
	}
	set("app", pairs("name", "Portvakt Gateway", "uid", node), c.uid == 6002)
	set("policy", pairs("uid", r.Revision, "name", r.Rule), r.Revision != "" || r.Rule != "")
	set("traffic", object{"bytes_in": r.BytesIn, "bytes_out": r.BytesOut, "bytes": r.BytesIn + r.BytesOut}, r.BytesIn != 0 || r.BytesOut != 0)
	if r.Method != "" {
		e["http_request"] = object{"http_method": r.Method, "url": object{"hostname": r.Host, "path": r.Path}}
	}
	set("http_response", object{"code": r.Status}, r.Status != 0)
	rest := pairs("person", r.Person, "decision", r.Decision, "session", r.Session, "flow", r.Flow, "remedy", r.Remedy, "request_hash", r.RequestHash)
	if r.Fact != nil {
		rest["fact"] = r.Fact
	}
	if len(r.Detail) > 0 {
		rest["detail"] = r.Detail
	}
	if len(r.Expired) > 0 {
		rest["expired"] = r.Expired
	}
	if len(r.Unreadable) > 0 {
		rest["unreadable"] = r.Unreadable
	}
	set("unmapped", rest, len(rest) > 0)
	return appendObject(to, e)
}

// appendObject appends an object as JSON on one line, with what a terminal or an
// eye is misled by escaped.
func appendObject(to []byte, e object) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, err
	}
	for _, c := range strings.TrimSuffix(b.String(), "\n") {
		switch {
		case !hidden(c):
			to = utf8.AppendRune(to, c)
		case c > 0xffff: // JSON has no longer escapes: RFC 8259, section 7
			hi, lo := utf16.EncodeRune(c)
			to = fmt.Appendf(to, `\u%04x\u%04x`, hi, lo)
		default:
			to = fmt.Appendf(to, `\u%04x`, c)
		}
	}
	return append(to, '\n'), nil
}

// person is who acted: an administrator, or the subject.
func person(r *audit.Record) object {
	if r.Actor != "" {
		return object{"uid": r.Actor, "type_id": 2} // admin
	}
	if subject(r) == "" {
		return nil
	}
	user := object{"uid": subject(r), "type_id": 1}
	if name := r.Detail["name"]; name != "" && r.Kind == audit.KindLogin {
		user["name"] = name
	}
	return user
}

func ocsfSeverity(r *audit.Record) int {
	switch s := severity(r); {
	case s >= 9:
		return 4 // high
	case s >= 5:
		return 3 // medium
	case s >= 4:
		return 2 // low
	}
	return 1 // informational
}

// pairs is an object of the values that are there.
func pairs(kv ...string) object {
	o := object{}
	for i := 0; i < len(kv); i += 2 {
		if kv[i+1] != "" {
			o[kv[i]] = kv[i+1]
		}
	}
	return o
}
