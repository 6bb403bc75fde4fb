package policy

import (
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// pureBuiltins are the built-in functions that policy may call: those whose
// result depends on their arguments alone and whose cost is bounded by them.
// It is a list of what is allowed, so that a newer OPA brings nothing in by
// itself. Left out, besides everything OPA marks nondeterministic: what
// compares with the machine's clock (crypto.x509.*), what makes or reads keys
// and tokens, what compiles code or schemas, and what a short argument makes
// huge (net.cidr_expand).
const pureBuiltins = `
abs all and any array.concat array.flatten array.reverse array.slice assign
base64.decode base64.encode base64.is_valid base64url.decode base64url.encode base64url.encode_no_pad
bits.and bits.lsh bits.negate bits.or bits.rsh bits.xor ceil concat contains count
crypto.hmac.equal crypto.sha256 div endswith eq equal floor format_int glob.match glob.quote_meta
graph.reachable graph.reachable_paths gt gte hex.decode hex.encode indexof indexof_n
internal.member_2 internal.member_3 internal.template_string intersection
is_array is_boolean is_null is_number is_object is_set is_string
json.filter json.is_valid json.marshal json.patch json.remove json.unmarshal
lower lt lte max min minus mul neq
net.cidr_contains net.cidr_contains_matches net.cidr_intersects net.cidr_is_valid net.cidr_merge net.cidr_overlap
numbers.range numbers.range_step
object.filter object.get object.keys object.remove object.subset object.union object.union_n or plus product
regex.find_all_string_submatch_n regex.find_n regex.is_valid regex.match regex.replace regex.split
rem replace round semver.compare semver.is_valid sort split sprintf startswith
strings.any_prefix_match strings.any_suffix_match strings.count strings.replace_n strings.reverse strings.split_n
substring sum time.add_date time.clock time.date time.diff time.format time.parse_duration_ns time.parse_ns
time.parse_rfc3339_ns time.weekday to_number trim trim_left trim_prefix trim_right trim_space trim_suffix
type_name union units.parse units.parse_bytes upper uri.is_valid uri.parse
urlquery.decode urlquery.decode_object urlquery.encode urlquery.encode_object uuid.parse walk
`

// Capabilities returns what policy may use of OPA: no I/O, no clock, no chance.
// A Decision is a function of its Input because of it.
func Capabilities() *ast.Capabilities {
	all := ast.CapabilitiesForThisVersion()
	pure := strings.Fields(pureBuiltins)
	caps := &ast.Capabilities{AllowNet: []string{}}
	caps.Features = slices.DeleteFunc(slices.Clone(all.Features), func(f string) bool {
		return f != "keywords_in_refs" && f != "rego_v1" && f != "template_strings"
	})
	for _, b := range all.Builtins {
		if !b.Nondeterministic && slices.Contains(pure, b.Name) {
			caps.Builtins = append(caps.Builtins, b)
		}
	}
	return caps
}
