package portvakt_test

import data.portvakt

# The catalogue and the input of every test, changed by `with`.
rule := {
	"name": "crm.access[0]",
	"anyone": false,
	"groups": ["sales"],
	"subjects": [],
	"posture": {"host_firewall": "pass"},
	"countries": ["SE"],
	"not_countries": [],
	"methods": ["GET"],
	"paths": ["/x/**"],
	"match": {"exact": [], "prefixes": ["/x/"], "patterns": []},
}

catalogue(rules) := {"crm": {"name": "crm", "protocol": "http", "ports": [443, 80], "websocket": false, "access": rules}}

question := {
	"time": "2026-03-02T09:00:00Z",
	"action": "request",
	"app": {"name": "crm", "protocol": "http"},
	"subject": {"issuer": "https://i", "sub": "s", "groups": ["sales"]},
	"session": {"id": "ses", "expires_at": "2026-03-02T10:00:00Z"},
	"posture": {"received_at": "2026-03-02T08:59:50Z", "signals": {"host_firewall": {"state": "pass"}}},
	"location": {"country": "SE"},
	"request": {"method": "GET", "host": "crm.example.com", "path": "/x/1"},
}

changed(patch) := json.patch(question, patch)

test_allowed if {
	answer := portvakt.decision with data.portvakt_catalogue.apps as catalogue([rule]) with input as question
	answer == {"allow": true, "reason": "allowed", "rule": "crm.access[0]"}
}

test_always_an_answer if {
	every asked in [{}, null, [], "x", {"time": 7}, {"time": "2026-03-02T09:00:00Z", "action": "reach", "app": 7}] {
		not portvakt.decision.allow with data.portvakt_catalogue.apps as catalogue([rule]) with input as asked
	}
}

test_no_catalogue_denies if {
	answer := portvakt.decision with data.portvakt_catalogue as {} with input as question
	answer.allow == false
	answer.reason == "unknown_app"
}

test_anyone_still_logs_in if {
	answer := portvakt.decision with data.portvakt_catalogue.apps as catalogue([object.union(rule, {"anyone": true})])
		with input as changed([{"op": "remove", "path": "/session"}])
	answer.reason == "login_required"
}

test_ended_never_allows if {
	every ended in ["session_expired", "session_revoked", "allowed", "x"] {
		answer := portvakt.decision with data.portvakt_catalogue.apps as catalogue([rule])
			with input as changed([{"op": "remove", "path": "/session"}, {"op": "add", "path": "/ended", "value": ended}])
		answer.allow == false
		answer.reason == object.get({"session_expired": "session_expired", "session_revoked": "session_revoked"}, ended, "login_required")
	}
}

test_session_ends_at_its_time if {
	answer := portvakt.decision with data.portvakt_catalogue.apps as catalogue([rule])
		with input as changed([{"op": "replace", "path": "/session/expires_at", "value": "2026-03-02T09:00:00Z"}])
	answer.reason == "session_expired"
}

test_furthest_rule_explains if {
	other := object.union(rule, {"name": "crm.access[1]", "groups": ["support"]})
	answer := portvakt.decision with data.portvakt_catalogue.apps as catalogue([other, rule])
		with input as changed([{"op": "replace", "path": "/location/country", "value": "DE"}])
	answer.reason == "location_not_allowed"
	answer.rule == "crm.access[0]"
	answer.fact == {"name": "country", "value": "DE", "wanted": "SE"}
}

test_first_of_equals_explains if {
	rules := [object.union(rule, {"name": name, "groups": [name]}) | some name in ["a", "b"]]
	answer := portvakt.decision with data.portvakt_catalogue.apps as catalogue(rules) with input as question
	answer.rule == "a"
}

test_any_rule_allows if {
	rules := [object.union(rule, {"name": "a", "groups": ["a"]}), object.union(rule, {"name": "b"})]
	answer := portvakt.decision with data.portvakt_catalogue.apps as catalogue(rules) with input as question
	answer.rule == "b"
}

test_rules_do_not_mix if {
	rules := [object.union(rule, {"groups": ["a"]}), object.union(rule, {"methods": ["POST"]})]
	answer := portvakt.decision with data.portvakt_catalogue.apps as catalogue(rules) with input as question
	answer.reason == "method_not_allowed"
}

test_reach_ignores_methods_and_paths if {
	portvakt.decision.allow with data.portvakt_catalogue.apps as catalogue([rule])
		with input as changed([{"op": "replace", "path": "/action", "value": "reach"}, {"op": "remove", "path": "/request"}])
}

test_custom_module_narrows if {
	answer := portvakt.decision with data.portvakt_catalogue.apps as catalogue([rule]) with input as question
		with data.portvakt.custom.x.deny as {{"message": "no"}}
	answer == {"allow": false, "reason": "policy_denied", "rule": "custom.x", "message": "no"}
}

test_custom_module_cannot_grant if {
	every yield in [set(), {{"allow": true, "message": "m"}}, {{"message": "m", "reason": "allowed"}}] {
		answer := portvakt.decision with data.portvakt_catalogue.apps as catalogue([rule])
			with input as changed([{"op": "replace", "path": "/subject/groups", "value": []}])
			with data.portvakt.custom.x.deny as yield
		answer.reason == "group_not_allowed"
	}
}

test_malformed_denials_deny if {
	every yield in ["no", true, 7, null, [], {}, {"message": ""}, {"message": "m", "allow": true}, {"message": "m", "fact": null}] {
		answer := portvakt.decision with data.portvakt_catalogue.apps as catalogue([rule]) with input as question
			with data.portvakt.custom.x.deny as {yield}
		answer.allow == false
		answer.reason == "policy_error"
	}
}

test_absence_denies if {
	gone := {
		"location.country": "/location/country",
		"posture.signals.host_firewall": "/posture/signals/host_firewall",
		"posture.received_at": "/posture/received_at",
		"posture.signals": "/posture/signals",
	}
	every path, pointer in gone {
		answer := portvakt.decision with data.portvakt_catalogue.apps as catalogue([object.union(object.remove(rule, ["posture"]), {"posture": {}, "countries": []})])
			with input as changed([{"op": "remove", "path": pointer}])
			with data.portvakt.custom.x as {"deny": set(), "absent": {path: "deny"}}
		answer.reason == "policy_denied"
		answer.fact.name == path
	}
}

test_absence_of_optional_facts if {
	every path in ["location.address", "subject.email", "subject.name", "subject.claims", "subject.claims.role", "device.serial", "not.a.fact"] {
		answer := portvakt.decision with data.portvakt_catalogue.apps as catalogue([rule]) with input as question
			with data.portvakt.custom.x as {"deny": set(), "absent": {path: "deny"}}
		answer.fact == {"name": path, "value": "unknown", "wanted": "known"}
	}
}

test_presence_of_optional_facts if {
	facts := [
		{"op": "add", "path": "/location/address", "value": "192.0.2.1"},
		{"op": "add", "path": "/subject/email", "value": "a@example.com"},
		{"op": "add", "path": "/subject/name", "value": "A"},
		{"op": "add", "path": "/subject/claims", "value": {"role": false, "https://x.example.com/y.z": 1}},
		{"op": "add", "path": "/device", "value": {"serial": "S"}},
	]
	absent := {path: "deny" |
		some path in ["location.address", "subject.email", "subject.name", "subject.claims", "subject.claims.role", "subject.claims.https://x.example.com/y.z", "device.serial", "location.country", "posture.received_at", "posture.signals", "posture.signals.host_firewall"]
	}
	portvakt.decision.allow with data.portvakt_catalogue.apps as catalogue([rule]) with input as changed(facts)
		with data.portvakt.custom.x as {"deny": set(), "absent": absent}
}

test_unknown_is_absent if {
	answer := portvakt.decision with data.portvakt_catalogue.apps as catalogue([object.union(object.remove(rule, ["posture"]), {"posture": {}})])
		with input as changed([{"op": "replace", "path": "/posture/signals/host_firewall/state", "value": "unknown"}])
		with data.portvakt.custom.x as {"deny": set(), "absent": {"posture.signals.host_firewall": "deny"}}
	answer.reason == "policy_denied"
}
