package dns

// Compose puts a Setting in front of a resolv.conf, Strip takes it out again,
// and WithoutRotate is what stays of the rest.
var (
	Compose       = compose
	Strip         = strip
	WithoutRotate = withoutRotate
	Nameservers   = nameservers
	SameNetwork   = sameNetwork
)
