package portvakt

# closest is the outcome of the access rule that got furthest; of several that
# got as far, the first one written.
closest := outcomes[0] if {
	outcomes[0].step == 7
} else := [outcome |
	some outcome in outcomes
	outcome.step == furthest
][0]

furthest := max([outcome.step | some outcome in outcomes])

outcomes := [outcome |
	some i, rule in app.access
	outcome := object.union(outcome_of(rule), {"rule": sprintf("%s.access[%d]", [app.name, i])})
] if {
	count(app.access) > 0
} else := [{
	"step": 1,
	"allow": false,
	"reason": "group_not_allowed",
	"fact": {"name": "groups", "value": group_names, "wanted": "the app has no access rule yet, so nobody may use it"},
}]

outcome_of(rule) := lacking(1, "group_not_allowed", who_fact(rule)) if {
	not who(rule)
} else := lacking(2, problem.reason, problem.fact) if {
	problem := posture_problem(rule)
} else := lacking(3, problem.reason, problem.fact) if {
	problem := location_problem(rule)
} else := lacking(4, "outside_hours", hours_fact(rule.hours)) if {
	rule.hours
	not within(rule.hours)
} else := lacking(5, "method_not_allowed", fact) if {
	fact := method_problem(rule)
} else := lacking(6, "path_not_allowed", path_fact(rule)) if {
	input.action == "request"
	count(rule.paths) > 0
	not path_matches(rule)
} else := {"step": 7, "allow": true}

lacking(step, reason, fact) := {"step": step, "allow": false, "reason": reason, "fact": fact}

# Who

who(rule) if rule.anyone == true

who(rule) if {
	some group in input.subject.groups
	group in rule.groups
}

who(rule) if subject_id in rule.subjects

subject_id := concat("#", [input.subject.issuer, input.subject.sub])

who_fact(rule) := {"name": "groups", "value": group_names, "wanted": one_of(rule.groups)} if {
	count(rule.groups) > 0
} else := {"name": "subject", "value": subject_id, "wanted": "one of the people the rule names"}

group_names := concat(", ", input.subject.groups) if {
	count(input.subject.groups) > 0
} else := "none"

# Posture

posture_problem(rule) := {"reason": "posture_stale", "fact": {
	"name": "posture_report",
	"value": "none",
	"wanted": "a recent report",
}} if {
	count(rule.posture) > 0
	not input.posture.received_at
} else := {"reason": "posture_failed", "fact": signal_fact(failed[0])} if {
	failed := [name | some name, _ in rule.posture; signal_state(name) == "fail"]
	count(failed) > 0
} else := {"reason": "posture_unknown", "fact": signal_fact(unknown[0])} if {
	unknown := [name | some name, _ in rule.posture; signal_state(name) != "pass"]
	count(unknown) > 0
}

signal_state(name) := input.posture.signals[name].state if {
	input.posture.signals[name].state in {"pass", "fail"}
} else := "unknown"

signal_fact(name) := {"name": name, "value": signal_text(name), "wanted": "pass"}

signal_text(name) := concat(": ", [signal_state(name), input.posture.signals[name].value]) if {
	input.posture.signals[name].value != ""
} else := signal_state(name) if {
	input.posture.signals[name]
} else := "not reported"

# Location

country := input.location.country if not input.location.country in {"", "unknown"}

location_problem(rule) := {"reason": "location_unknown", "fact": {
	"name": "country",
	"value": "unknown",
	"wanted": wanted_country(rule),
}} if {
	wanted_country(rule)
	not country
} else := {"reason": "location_not_allowed", "fact": {
	"name": "country",
	"value": country,
	"wanted": wanted_country(rule),
}} if {
	wanted_country(rule)
	not country_allowed(rule)
}

country_allowed(rule) if country in rule.countries

country_allowed(rule) if {
	count(rule.countries) == 0
	not country in rule.not_countries
}

wanted_country(rule) := one_of(rule.countries) if {
	count(rule.countries) > 0
} else := concat("", ["not ", concat(", ", rule.not_countries)]) if {
	count(rule.not_countries) > 0
}

# Hours

within(hours) if {
	hours.from_minute < hours.to_minute
	today(hours.zone) in hours.days
	minute(hours.zone) >= hours.from_minute
	minute(hours.zone) < hours.to_minute
}

within(hours) if {
	hours.from_minute > hours.to_minute
	today(hours.zone) in hours.days
	minute(hours.zone) >= hours.from_minute
}

# The span of the evening before, past midnight.
within(hours) if {
	hours.from_minute > hours.to_minute
	day_before[today(hours.zone)] in hours.days
	minute(hours.zone) < hours.to_minute
}

hours_fact(hours) := {
	"name": "time",
	"value": sprintf("%s %02d:%02d %s", [today(hours.zone), floor(minute(hours.zone) / 60), minute(hours.zone) % 60, hours.zone]),
	"wanted": sprintf("%s %s-%s %s", [concat(", ", hours.days), hours.from, hours.to, hours.zone]),
}

today(zone) := lower(substring(time.weekday([now, zone]), 0, 3))

minute(zone) := (clock[0] * 60) + clock[1] if clock := time.clock([now, zone])

day_before := {
	"mon": "sun",
	"tue": "mon",
	"wed": "tue",
	"thu": "wed",
	"fri": "thu",
	"sat": "fri",
	"sun": "sat",
}

# Methods and paths

method_problem(rule) := {"name": "upgrade", "value": input.request.upgrade, "wanted": "no upgrade; the app's `websocket` is off"} if {
	input.action == "request"
	object.get(input.request, "upgrade", "") != ""
	app.websocket == false
}

else := {"name": "method", "value": input.request.method, "wanted": one_of(rule.methods)} if {
	input.action == "request"
	count(rule.methods) > 0
	not input.request.method in rule.methods
}

path_matches(rule) if input.request.path in rule.match.exact

path_matches(rule) if strings.any_prefix_match(input.request.path, rule.match.prefixes)

path_matches(rule) if {
	some pattern in rule.match.patterns
	regex.match(pattern, input.request.path)
}

path_fact(rule) := {"name": "path", "value": input.request.path, "wanted": one_of(rule.paths)}
