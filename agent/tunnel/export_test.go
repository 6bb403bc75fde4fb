package tunnel

import "strings"

// AllowedIPs is what WireGuard itself says it carries.
func AllowedIPs(t *Tunnel) []string {
	conf, err := t.dev.IpcGet()
	if err != nil {
		panic(err)
	}
	var all []string
	for line := range strings.Lines(conf) {
		if p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "allowed_ip="); ok {
			all = append(all, p)
		}
	}
	return all
}
