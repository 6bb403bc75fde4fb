package portvakt

# permit is the name of the first access rule that grants; undefined if none.
permit := [rule.name |
	some rule in app.access
	who(rule)
	posture_sound(rule)
	place_allowed(rule)
	hours_allowed(rule)
	method_allowed(rule)
	path_allowed(rule)
][0]

# closest is the outcome of the access rule that got furthest; of several that
# got as far, the first one written. It matters when nothing permits.
closest := [outcome |
	some outcome in outcomes
	outcome.step == furthest
][0]

furthest := max([outcome.step | some outcome in outcomes])

outcomes := [outcome_of(rule) | some rule in app.access] if {
	count(app.access) > 0
} else := [{
	"step": 1,
	"allow": false,
	"reason": "group_not_allowed",
	"fact": {"name": "groups", "value": group_names, "wanted": "the app has no access rule yet, so nobody may use it"},
}]

outcome_of(rule) := lacking(rule, 1, "group_not_allowed", who_fact(rule)) if {
	not who(rule)
} else := lacking(rule, 2, problem.reason, problem.fact) if {
	not posture_sound(rule)
	problem := posture_problem(rule)
} else := lacking(rule, 3, problem.reason, problem.fact) if {
	not place_allowed(rule)
	problem := location_problem(rule)
} else := lacking(rule, 4, "outside_hours", hours_fact(rule.hours)) if {
	not hours_allowed(rule)
} else := lacking(rule, 5, "method_not_allowed", method_fact(rule)) if {
	not method_allowed(rule)
} else := lacking(rule, 6, "path_not_allowed", path_fact(rule)) if {
	not path_allowed(rule)
}

lacking(rule, step, reason, fact) := {
	"step": step,
	"allow": false,
	"reason": reason,
	"rule": rule.name,
	"fact": fact,
}

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

posture_sound(rule) if count(rule.posture) == 0

posture_sound(rule) if {
	input.posture.received_at
	every name, _ in rule.posture {
		input.posture.signals[name].state == "pass"
	}
}

posture_problem(rule) := {"reason": "posture_stale", "fact": {
	"name": "posture_report",
	"value": "none",
	"wanted": "a recent report",
}} if {
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

place_allowed(rule) if {
	count(rule.countries) == 0
	count(rule.not_countries) == 0
}

place_allowed(rule) if country in rule.countries

place_allowed(rule) if {
	count(rule.not_countries) > 0
	not country_refused(rule)
}

# Not knowing where someone is refuses as well.
country_refused(rule) if not country

country_refused(rule) if country in rule.not_countries

location_problem(rule) := {"reason": "location_unknown", "fact": {
	"name": "country",
	"value": "unknown",
	"wanted": wanted_country(rule),
}} if {
	not country
} else := {"reason": "location_not_allowed", "fact": {
	"name": "country",
	"value": country,
	"wanted": wanted_country(rule),
}}

wanted_country(rule) := one_of(rule.countries) if {
	count(rule.countries) > 0
} else := concat("", ["not ", concat(", ", rule.not_countries)]) if {
	count(rule.not_countries) > 0
}

# Hours

hours_allowed(rule) if not rule.hours

hours_allowed(rule) if within(rule.hours)

within(hours) if {
	not hours.overnight
	weekday(hours.zone) in hours.weekdays
	minute(hours.zone) >= hours.from_minute
	minute(hours.zone) < hours.to_minute
}

within(hours) if {
	hours.overnight
	weekday(hours.zone) in hours.weekdays
	minute(hours.zone) >= hours.from_minute
}

# The span of the evening before, past midnight.
within(hours) if {
	hours.overnight
	day_before[weekday(hours.zone)] in hours.weekdays
	minute(hours.zone) < hours.to_minute
}

hours_fact(hours) := {
	"name": "time",
	"value": sprintf("%s %02d:%02d %s", [lower(substring(weekday(hours.zone), 0, 3)), floor(minute(hours.zone) / 60), minute(hours.zone) % 60, hours.zone]),
	"wanted": sprintf("%s %s-%s %s", [concat(", ", hours.days), hours.from, hours.to, hours.zone]),
}

weekday(zone) := time.weekday([now, zone])

minute(zone) := (clock[0] * 60) + clock[1] if clock := time.clock([now, zone])

day_before := {
	"Monday": "Sunday",
	"Tuesday": "Monday",
	"Wednesday": "Tuesday",
	"Thursday": "Wednesday",
	"Friday": "Thursday",
	"Saturday": "Friday",
	"Sunday": "Saturday",
}

# Methods and paths

# Only a request has a method and a path.
method_allowed(_) if input.action != "request"

method_allowed(rule) if {
	upgrade_allowed
	count(rule.methods) == 0
}

method_allowed(rule) if {
	upgrade_allowed
	input.request.method in rule.methods
}

upgrade_allowed if app.websocket == true

upgrade_allowed if not input.request.upgrade

upgrade_allowed if input.request.upgrade == ""

method_fact(_) := {"name": "upgrade", "value": input.request.upgrade, "wanted": "no upgrade; the app's `websocket` is off"} if {
	not upgrade_allowed
}

method_fact(rule) := {"name": "method", "value": input.request.method, "wanted": one_of(rule.methods)} if {
	upgrade_allowed
}

path_allowed(_) if input.action != "request"

path_allowed(rule) if count(rule.paths) == 0

path_allowed(rule) if input.request.path in rule.match.exact

path_allowed(rule) if strings.any_prefix_match(input.request.path, rule.match.prefixes)

path_allowed(rule) if {
	some pattern in rule.match.patterns
	regex.match(pattern, input.request.path)
}

path_fact(rule) := {"name": "path", "value": input.request.path, "wanted": one_of(rule.paths)}
