package portvakt

# narrowed says that some custom module refuses, or fails to say what it means.
narrowed if data.portvakt.custom[_].deny[_]

narrowed if {
	some name, path
	data.portvakt.custom[name].absent[path] == "deny"
	not known(path)
}

# custom_refusal is what the modules of package portvakt.custom.NAME refuse;
# undefined when they refuse nothing. They are asked only about what YAML
# allowed. Modules are taken by name, denials in Rego's order of values, so
# that the same Input always gets the same one.
custom_refusal := refuse("policy_error", {
	"name": concat("", ["custom.", malformed[0]]),
	"value": "a denial that is not well formed",
	"wanted": "an object with message, and optionally remedy and fact {name, value, wanted}, all text",
}) if {
	count(malformed) > 0
} else := object.union(
	refuse("policy_denied", {
		"name": missing[0].path,
		"value": "unknown",
		"wanted": "known",
	}),
	{"rule": concat("", ["custom.", missing[0].module])},
) if {
	count(missing) > 0
} else := object.union(
	{"allow": false, "reason": "policy_denied", "rule": concat("", ["custom.", custom_denials[0].module])},
	custom_denials[0].denial,
) if {
	count(custom_denials) > 0
}

# Through JSON and back: what a module yields may be anything, and the type
# checker must not judge this module by it.
custom_denials := [{"module": name, "denial": json.unmarshal(json.marshal(denial))} |
	some name, denial
	data.portvakt.custom[name].deny[denial]
]

malformed := [entry.module |
	some entry in custom_denials
	not well_formed(entry.denial)
]

well_formed(denial) if {
	is_object(denial)
	object.keys(denial) - {"message", "remedy", "fact"} == set()
	is_string(denial.message)
	trim_space(denial.message) != ""
	is_string(object.get(denial, "remedy", ""))
	well_formed_fact(object.get(denial, "fact", {"name": "", "value": "", "wanted": ""}))
}

well_formed_fact(fact) if {
	is_object(fact)
	object.keys(fact) == {"name", "value", "wanted"}
	every text in fact {
		is_string(text)
	}
}

# missing holds the facts that a module declares as `absent := {PATH: "deny"}`
# and that are absent.
missing := [{"module": name, "path": path} |
	some name, path
	data.portvakt.custom[name].absent[path] == "deny"
	not known(path)
]

known("location.country") if country

known("location.address") if not input.location.address in {"", "unknown"}

known("posture.received_at") if input.posture.received_at

known("posture.signals") if count(input.posture.signals) > 0

known(path) if {
	startswith(path, "posture.signals.")
	input.posture.signals[substring(path, 16, -1)].state in {"pass", "fail"}
}

known("subject.claims") if count(input.subject.claims) > 0

known(path) if {
	startswith(path, "subject.claims.")
	value := input.subject.claims[substring(path, 15, -1)]
	value != null
}

known("subject.email") if input.subject.email != ""

known("subject.name") if input.subject.name != ""

known("device.serial") if input.device.serial != ""
