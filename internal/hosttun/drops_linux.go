package hosttun

import (
	"bytes"
	"errors"
	"os"
	"strconv"
)

// drops are the namespace's counters of what the kernel drops by itself. The
// files tell of the namespace they were opened in, and keep it until they are
// closed.
type drops struct{ snmp, dev *os.File }

// openDrops runs on the namespace's thread.
func openDrops() (d drops, err error) {
	if d.snmp, err = os.Open("/proc/thread-self/net/snmp"); err != nil {
		return drops{}, err
	}
	if d.dev, err = os.Open("/proc/thread-self/net/dev"); err != nil {
		return drops{}, errors.Join(err, d.snmp.Close())
	}
	return d, nil
}

func (d *drops) close() error { return errors.Join(d.snmp.Close(), d.dev.Close()) }

// malformed is how many packets had a wrong checksum or IP header; 0 after close.
func (d *drops) malformed() uint64 {
	b := contents(d.snmp)
	return named(b, "Tcp:", "InCsumErrors") + named(b, "Ip:", "InHdrErrors")
}

// queue is how many packets to devices found the interface's queue full; 0 after
// close.
func (d *drops) queue() uint64 {
	for line := range bytes.Lines(contents(d.dev)) {
		// Eight numbers of what came in, then bytes, packets, errors and drops of
		// what went out.
		if f := bytes.Fields(line); len(f) > 12 && string(f[0]) == ifName+":" {
			return number(f[12])
		}
	}
	return 0
}

// contents is a file of the proc file system from its beginning.
func contents(f *os.File) []byte {
	b := make([]byte, 8192)
	n, _ := f.ReadAt(b, 0)
	return b[:n]
}

// named is a number of /proc/net/snmp: a line of names comes before one of
// values, both with their protocol in front.
func named(b []byte, proto, name string) uint64 {
	var names [][]byte
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		switch {
		case len(f) == 0 || string(f[0]) != proto:
		case names == nil:
			names = f
		default:
			for i := 1; i < min(len(f), len(names)); i++ {
				if string(names[i]) == name {
					return number(f[i])
				}
			}
		}
	}
	return 0
}

func number(b []byte) uint64 {
	n, _ := strconv.ParseUint(string(b), 10, 64)
	return n
}
