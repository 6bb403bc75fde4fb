# A rule that YAML has no key for. It sits beside the apps and takes part: what
# YAML grants, it may refuse. It can never grant. docs/policy.md has the rest.
package portvakt.custom.temporary_staff

# Both facts may be absent. With "deny" absence refuses, with "ignore" the rule
# below simply does not apply.
absent := {
	"subject.claims.employment": "ignore",
	"location.country": "deny",
}

deny contains {
	"message": "Temporary staff uses the customer register from Sweden only.",
	"remedy": "Ask your team leader for an exception.",
	"fact": {"name": "country", "value": input.location.country, "wanted": "SE"},
} if {
	input.app.name == "crm"
	input.subject.claims.employment == "temporary"
	input.location.country != "SE"
}
