// Package tunread reads a TUN interface as many packets at a time as wait in it.
// Upstream's reader returns after one, so that WireGuard's pipeline of four
// goroutines turns once a packet.
package tunread
