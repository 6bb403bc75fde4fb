package hosttun

import (
	"encoding/binary"
	"testing"
	"time"
)

// TestOverflowIsCounted: what finds the interface's queue full, since nobody
// reads it, is counted as dropped.
func TestOverflowIsCounted(t *testing.T) {
	need(t)
	s, err := New(passing(nil))
	if err != nil {
		t.Fatal(err)
	}
	const asked = queueLength + 200
	echo := make([]byte, 28)
	echo[0], echo[3], echo[8], echo[9], echo[20] = 0x45, 28, 64, 1, 8
	copy(echo[12:], laptop.AsSlice())
	copy(echo[16:], own[0].AsSlice())
	binary.BigEndian.PutUint16(echo[10:], checksum(0, echo[:20]))
	binary.BigEndian.PutUint16(echo[22:], checksum(0, echo[20:]))
	for range asked {
		if _, err := s.Device().Write([][]byte{append(make([]byte, headroom, 2048), echo...)}, headroom); err != nil {
			t.Fatal(err)
		}
	}
	// They are answered one after the other as they are written, but for what
	// the kernel puts off.
	end := time.Now().Add(10 * time.Second)
	for s.Stats().Dropped < asked-queueLength && time.Now().Before(end) {
		time.Sleep(time.Millisecond)
	}
	if n := s.Stats().Dropped; n != asked-queueLength {
		t.Errorf("of %d answers that nobody reads %d are dropped, want %d", asked, n, asked-queueLength)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if n := s.Stats().Malformed; n != 0 {
		t.Errorf("%d malformed after the end", n)
	}
}

func TestNumbersOfTheKernel(t *testing.T) {
	const snmp = "Ip: Forwarding DefaultTTL InReceives InHdrErrors\nIp: 2 64 9 3\nTcp: RtoAlgorithm MaxConn InErrs InCsumErrors\nTcp: 1 -1 7 5\nUdp: InDatagrams InCsumErrors\nUdp: 4 8\n"
	for _, c := range []struct {
		text, proto, name string
		want              uint64
	}{
		{snmp, "Ip:", "InHdrErrors", 3},
		{snmp, "Tcp:", "InCsumErrors", 5},
		{snmp, "Tcp:", "MaxConn", 0},
		{snmp, "Tcp:", "Unknown", 0},
		{snmp, "Icmp:", "InCsumErrors", 0},
		{"Tcp: A B\nTcp: 1", "Tcp:", "B", 0},
		{"Tcp: A", "Tcp:", "A", 0},
		{"", "Tcp:", "A", 0},
	} {
		if got := named([]byte(c.text), c.proto, c.name); got != c.want {
			t.Errorf("%s %s of %q: %d, want %d", c.proto, c.name, c.text, got, c.want)
		}
	}
}
