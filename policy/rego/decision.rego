# METADATA
# title: Portvakt's decision
# description: |
#   What YAML wrote, custom modules may narrow. The steps are ordered so that
#   a person is told the fix that helps first: another app name, a login, then
#   what the closest access rule lacks, then what a custom module refuses.
package portvakt

import data.portvakt_catalogue.apps

app := apps[input.app.name]

# METADATA
# description: |
#   The answer, {allow, reason, rule?, fact?, message?, remedy?}. The first body
#   is the only one that allows, and most often the only one evaluated.
# entrypoint: true
decision := {"allow": true, "reason": "allowed", "rule": permit} if {
	now
	well_asked
	app.protocol == input.app.protocol
	port_known
	logged_in
	in_force
	permit
	not narrowed
} else := refuse("policy_error", {
	"name": "time",
	"value": input.time,
	"wanted": "a time of this age",
}) if {
	not now
} else := refuse("policy_error", {
	"name": "action",
	"value": input.action,
	"wanted": "reach, request or flow, with the facts that belong to it",
}) if {
	not well_asked
} else := refuse("unknown_app", {
	"name": "app",
	"value": input.app.name,
	"wanted": "the name and protocol of an app",
}) if {
	not app.protocol == input.app.protocol
} else := refuse("unknown_app", {
	"name": "port",
	"value": format_int(input.flow.port, 10),
	"wanted": one_of([format_int(port, 10) | some port in app.ports]),
}) if {
	not port_known
} else := refuse(no_login, {
	"name": "session",
	"value": "none",
	"wanted": "a login",
}) if {
	not logged_in
} else := refuse("session_expired", {
	"name": "session.expires_at",
	"value": input.session.expires_at,
	"wanted": sprintf("later than %s", [input.time]),
}) if {
	not in_force
} else := object.remove(closest, ["step"]) if {
	not permit
} else := custom_refusal

# What became of the last login, when that is known.
no_login := input.ended if {
	input.ended in {"session_expired", "session_revoked"}
} else := "login_required"

refuse(reason, fact) := {"allow": false, "reason": reason, "fact": fact}

now := moment(input.time)

# A time that cannot be computed with is undefined here, never an error: the
# zero time of Go is in the year 1.
moment(text) := time.parse_rfc3339_ns(text) if strings.any_prefix_match(text, ["19", "20", "21"])

well_asked if input.action == "reach"

well_asked if {
	input.action == "request"
	input.app.protocol == "http"
	is_string(input.request.method)
	startswith(input.request.path, "/")
}

well_asked if {
	input.action == "flow"
	input.app.protocol in {"tcp", "udp"}
	is_number(input.flow.port)
}

port_known if input.action != "flow"

port_known if input.flow.port in app.ports

logged_in if {
	input.subject.issuer != ""
	input.subject.sub != ""
	input.session.id != ""
}

in_force if moment(input.session.expires_at) > now

one_of(words) := words[0] if {
	count(words) == 1
} else := concat("", ["one of ", concat(", ", words)])
