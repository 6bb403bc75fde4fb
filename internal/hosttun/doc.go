// Package hosttun ends a gateway's tunnel in the kernel's TCP/IP stack, behind
// the [tun.Device] of an unmodified WireGuard: the other choice to
// internal/overlay, for Linux and root.
//
// The kernel's stack is one of its own: a network namespace that this process
// makes, that has no name, no cable and no road out but the tunnel, and that
// ends with the process however that ends. In it every address is local, so
// that the addresses of apps need no upkeep, and nothing is ever routed. The
// rest of the process stays in the host's namespace, which knows none of these
// addresses: whoever sends to one from the host's networks reaches nothing.
//
// What comes out of the tunnel passes the owner's filter first. A SYN the filter
// lets through is kept from the kernel until the owner, who decides and dials
// meanwhile, accepts the connection; a refusal is a reset. A connection the
// kernel completes without such a request is reset as soon as it is seen.
package hosttun
