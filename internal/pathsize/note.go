package pathsize

import (
	"encoding/binary"
	"net/netip"
)

// A note tells the gateway how long the packets may be that a device's path
// takes. It is in an echo request to the gateway's own inner address, of which it
// is no more than data: who does not know it echoes it. That it is the device's
// is what WireGuard proves of every packet.

const (
	noteAt   = 36 // behind the headers and eight bytes of the sender's own
	noteSize = 8 + 2
	magic    = 0x707673697a653101
)

// NoteEnd is the least length in bytes of an echo request with a note.
const NoteEnd = noteAt + noteSize

// Note writes size, in bytes, into an echo request by IPv4, before its checksum.
func Note(echo []byte, size int) {
	binary.BigEndian.PutUint64(echo[noteAt:], magic)
	binary.BigEndian.PutUint16(echo[noteAt+8:], uint16(size))
}

// Noted is the size in a note to gateway, and whose it is.
func Noted(packet []byte, gateway netip.Addr) (from netip.Addr, size int, ok bool) {
	if len(packet) < NoteEnd || packet[0] != 0x45 || packet[9] != 1 || packet[20] != 8 ||
		binary.BigEndian.Uint64(packet[noteAt:]) != magic || netip.AddrFrom4([4]byte(packet[16:20])) != gateway {
		return from, 0, false
	}
	size = int(binary.BigEndian.Uint16(packet[noteAt+8:]))
	return netip.AddrFrom4([4]byte(packet[12:16])), size, size >= Least
}
