package loopback

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// pac writes the PAC file: the apps' exact names and addresses go to the proxy,
// everything else goes its own way.
func pac(r *routes, proxy netip.AddrPort) string {
	hosts := map[string]int{}
	for h := range r.byHost {
		hosts[h] = 1
		if strings.Contains(h, ":") {
			hosts["["+h+"]"] = 1 // engines differ in how they hand an IPv6 literal over
		}
	}
	var b strings.Builder
	b.WriteString("// Portvakt: only the approved apps take this road.\nvar apps = {")
	for i, h := range slices.Sorted(maps.Keys(hosts)) {
		if i > 0 {
			b.WriteString(",")
		}
		quoted, _ := json.Marshal(h) // a string always encodes
		fmt.Fprintf(&b, "\n  %s: 1", quoted)
	}
	fmt.Fprintf(&b, `
};
function FindProxyForURL(url, host) {
  host = host.toLowerCase();
  if (host.charAt(host.length - 1) === ".") {
    host = host.substring(0, host.length - 1);
  }
  return Object.prototype.hasOwnProperty.call(apps, host) ? "PROXY %s" : "DIRECT";
}
`, proxy)
	return b.String()
}

// direct answers requests to the proxy itself. A web page may reach this port
// under a name of its own (DNS rebinding) or as a subresource; neither may read
// the names of the apps.
func (h *proxyHTTP) direct(w http.ResponseWriter, r *http.Request) {
	proxy, _ := h.s.Addresses()
	port := fmt.Sprint(proxy.Port())
	own := []string{"127.0.0.1:" + port, "localhost:" + port, "[::1]:" + port, proxy.String()}
	switch {
	case !slices.Contains(own, strings.ToLower(r.Host)):
		refuse(w, http.StatusForbidden, "This is Portvakt's proxy on this laptop; it answers only under its own address.")
	case r.Header.Get("Origin") != "" || !slices.Contains([]string{"", "none", "same-origin"}, r.Header.Get("Sec-Fetch-Site")):
		refuse(w, http.StatusForbidden, "Web pages may not read Portvakt's proxy configuration.")
	case r.URL.Path != "/proxy.pac":
		refuse(w, http.StatusNotFound, "Portvakt's proxy serves /proxy.pac and nothing else.")
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		refuse(w, http.StatusMethodNotAllowed, "The proxy configuration can only be read.")
	default:
		body := pac(h.s.routes.Load(), proxy)
		w.Header().Set("Content-Type", "application/x-ns-proxy-autoconfig")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cross-Origin-Resource-Policy", "same-origin")
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		fmt.Fprint(w, body)
	}
}
