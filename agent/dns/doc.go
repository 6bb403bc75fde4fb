// Package dns points the names of the visible apps at the gateway and leaves
// every other name to the laptop's own servers. It is used by the privileged
// network helper (package nethelper) and by nobody else.
//
// Three managers are known, and the first that fits is used:
//
//   - systemd-resolved, over D-Bus, when the system's names go through it: the
//     tunnel's interface gets the gateway as its server and each app's name as a
//     routing-only domain;
//   - the dnsmasq that NetworkManager runs, when it does: a file in its
//     dnsmasq.d;
//   - /etc/resolv.conf otherwise: the gateway's server comes first and the
//     former ones after it. That file cannot split; the gateway refuses every
//     name that is no app's, and glibc then asks the next server. The gateway so
//     sees all names that are asked for. musl asks all servers at once, so that
//     there a former one may be the first to say that an app does not exist.
//
// What was set is set again when the manager was restarted, when the laptop
// woke, and when another program rewrote resolv.conf. Undo puts everything
// back, and Recover does so for a process that was killed. What another program
// puts back later, from a copy of resolv.conf of that time, is undone once more.
package dns

// Names of the managers, as they are shown.
const (
	Resolved   = "systemd-resolved"
	Dnsmasq    = "NetworkManager (dnsmasq)"
	ResolvConf = "resolv.conf"
)
