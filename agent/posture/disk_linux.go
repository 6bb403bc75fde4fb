package posture

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// diskEncryption judges where the laptop keeps data at rest: the root file
// system, /home and what is mounted below it from a disk, and active swap. All
// must lie on dm-crypt. Encryption within a file system (fscrypt, ecryptfs,
// ZFS) is not looked at: such a laptop fails or is unknown. A LUKS container
// with the null cipher cannot be told from a real one without privilege.
func diskEncryption(t *tree) finding {
	d, err := readDisk(t)
	if err != nil {
		return unknown("error: " + err.Error())
	}
	var bad, unsure []string
	note := func(what string, err error) {
		var plain plainError
		switch {
		case err == nil:
		case errors.As(err, &plain):
			bad = append(bad, fmt.Sprintf("%s is not encrypted (%s)", what, string(plain)))
		default:
			unsure = append(unsure, fmt.Sprintf("%s: %s", what, err))
		}
	}
	good := []string{"/"}
	for _, m := range d.kept() {
		note(m.point, d.mounted(m, 0))
		if m.point != "/" {
			good = append(good, m.point)
		}
	}
	for _, s := range d.swaps {
		note("swap "+s.path, d.swapped(s))
	}
	if len(d.swaps) > 0 {
		good = append(good, "swap")
	}
	switch {
	case len(bad) > 0:
		return fail(strings.Join(bad, ", "))
	case len(unsure) > 0:
		return unknown("error: " + strings.Join(unsure, ", "))
	}
	return pass("dm-crypt: " + strings.Join(good, ", "))
}

// plainError names a device that holds data in the clear.
type plainError string

func (e plainError) Error() string { return string(e) + " is not encrypted" }

// disk is what one look at the tree found.
type disk struct {
	t      *tree
	mounts []mount
	swaps  []swap
}

// readDisk reads mounts and swap. The mounts are those of process 1: a service
// that confines itself (ProtectHome, PrivateTmp) sees others than the laptop
// has. Where process 1 is hidden from it (hidepid), its own have to do.
func readDisk(t *tree) (*disk, error) {
	text, err := t.read("proc/1/mountinfo")
	if err != nil {
		if text, err = t.read("proc/self/mountinfo"); err != nil {
			return nil, err
		}
	}
	d := &disk{t: t}
	if d.mounts, err = parseMountinfo(text); err != nil {
		return nil, err
	}
	if mountAt(d.mounts, "/") == nil {
		return nil, errors.New("no root file system is mounted")
	}
	// No /proc/swaps may mean a kernel without swap, or a process that is not
	// shown it (ProcSubset=pid).
	if text, err = t.read("proc/swaps"); err != nil {
		return nil, err
	}
	d.swaps, err = parseSwaps(text)
	return d, err
}

// kept returns the mounts that have to be encrypted, root first. Below /home
// only what lies on a disk of this machine counts.
func (d *disk) kept() []mount {
	out := []mount{*mountAt(d.mounts, "/")}
	if m := mountAt(d.mounts, "/home"); m != nil {
		out = append(out, *m)
	}
	for _, m := range d.mounts {
		if !strings.HasPrefix(m.point, "/home/") || slices.ContainsFunc(out, func(o mount) bool { return o.point == m.point }) {
			continue
		}
		m = *mountAt(d.mounts, m.point)
		if !strings.HasPrefix(m.device, "0:") || m.fstype == "btrfs" || m.fstype == "zfs" {
			out = append(out, m)
		}
	}
	return out
}

const maxDepth = 16 // of stacked block devices

// mounted returns nil if a mount's data is encrypted, a plainError if not.
func (d *disk) mounted(m mount, depth int) error {
	switch {
	case !strings.HasPrefix(m.device, "0:"):
		return d.block(m.device, depth)
	case m.fstype == "btrfs":
		return d.btrfs(m, depth)
	default: // overlay, tmpfs, zfs, nfs: no block device to look at
		return fmt.Errorf("a %s file system cannot be judged", m.fstype)
	}
}

// crypt lists the prefixes of dm uuids that mean encryption. CRYPT-VERITY- and
// CRYPT-INTEGRITY- only protect against change.
var crypt = []string{"CRYPT-LUKS1-", "CRYPT-LUKS2-", "CRYPT-PLAIN-", "CRYPT-TCRYPT-", "CRYPT-BITLK-", "CRYPT-FVAULT2-", "CRYPT-LOOPAES-"}

// block follows a block device down to dm-crypt or to a disk.
func (d *disk) block(device string, depth int) error {
	if depth > maxDepth {
		return errors.New("block devices are stacked too deep")
	}
	dir := "sys/dev/block/" + device
	uuid, err := d.t.line(dir + "/dm/uuid")
	if err != nil && !missing(err) {
		return err
	}
	if slices.ContainsFunc(crypt, func(p string) bool { return strings.HasPrefix(uuid, p) }) {
		return nil
	}
	real := d.t.real(dir)
	if !d.t.exists(dir) {
		return fmt.Errorf("device %s is not listed", device)
	}
	if d.t.exists(real+"/partition") && !d.t.exists(real+"/slaves") { // of a RAID array or the like: judged as the whole
		if whole, err := d.t.line(path.Dir(real) + "/dev"); err == nil && isDevice(whole) && real != dir {
			err := d.block(whole, depth+1)
			var plain plainError
			if errors.As(err, &plain) && string(plain) == path.Base(path.Dir(real)) {
				return plainError(path.Base(real))
			}
			return err
		}
	}
	if file, err := d.t.line(dir + "/loop/backing_file"); err == nil && file != "" {
		m := mountOf(d.mounts, file)
		if m == nil {
			return fmt.Errorf("the file behind loop device %s is not found", device)
		}
		return d.mounted(*m, depth+1)
	}
	slaves, err := d.t.names(dir + "/slaves")
	if err != nil && !missing(err) {
		return err
	}
	if len(slaves) == 0 {
		return plainError(path.Base(d.name(device)))
	}
	return d.each(dir+"/slaves", slaves, depth)
}

// each wants every device of a directory encrypted.
func (d *disk) each(dir string, names []string, depth int) error {
	var unsure error
	for _, n := range names {
		dev, err := d.t.line(dir + "/" + n + "/dev")
		if err == nil && !isDevice(dev) {
			err = fmt.Errorf("device %s has no number", n)
		}
		if err == nil {
			err = d.block(dev, depth+1)
		}
		var plain plainError
		if errors.As(err, &plain) {
			return err
		}
		if unsure == nil {
			unsure = err
		}
	}
	return unsure
}

// name returns a device's name for people.
func (d *disk) name(device string) string {
	if text, err := d.t.read("sys/dev/block/" + device + "/uevent"); err == nil {
		for _, l := range strings.Split(text, "\n") {
			if n, ok := strings.CutPrefix(l, "DEVNAME="); ok && n != "" {
				return n
			}
		}
	}
	if real := d.t.real("sys/dev/block/" + device); real != "sys/dev/block/"+device {
		return path.Base(real)
	}
	return device
}

// btrfs judges every device of a file system: its mount names only one, and its
// device number is none.
func (d *disk) btrfs(m mount, depth int) error {
	dev, name, err := d.find(m.source)
	if err != nil {
		return err
	}
	if err := d.block(dev, depth+1); err != nil {
		return err
	}
	systems, err := d.t.names("sys/fs/btrfs")
	if err != nil {
		return err
	}
	for _, fs := range systems {
		dir := "sys/fs/btrfs/" + fs + "/devices"
		devices, err := d.t.names(dir)
		if err == nil && slices.Contains(devices, name) {
			return d.each(dir, devices, depth+1)
		}
	}
	return fmt.Errorf("the devices of the btrfs file system on %s are not listed", m.source)
}

// find returns number and kernel name of a device path such as /dev/sda2 or
// /dev/mapper/root. Only sysfs is asked: /dev of another root holds no devices.
func (d *disk) find(dev string) (device, name string, err error) {
	name, ok := strings.CutPrefix(dev, "/dev/")
	if !ok {
		return "", "", fmt.Errorf("%s is not a device", dev)
	}
	if mapped, ok := strings.CutPrefix(name, "mapper/"); ok {
		if name, err = d.mapped(mapped); err != nil {
			return "", "", err
		}
	}
	if name == "" || strings.Contains(name, "/") || strings.HasPrefix(name, ".") {
		return "", "", fmt.Errorf("device %s is not found", dev)
	}
	device, err = d.t.line("sys/class/block/" + name + "/dev")
	if err != nil || !isDevice(device) {
		return "", "", fmt.Errorf("device %s is not found", dev)
	}
	return device, name, nil
}

func (d *disk) mapped(want string) (string, error) {
	all, err := d.t.names("sys/class/block")
	if err != nil {
		return "", err
	}
	for _, n := range all {
		if got, err := d.t.line("sys/class/block/" + n + "/dm/name"); err == nil && got == want {
			return n, nil
		}
	}
	return "", fmt.Errorf("device /dev/mapper/%s is not found", want)
}

// swapped judges one active swap. zram is memory, unless it writes pages back
// to a disk.
func (d *disk) swapped(s swap) error {
	if s.file {
		m := mountOf(d.mounts, s.path)
		if m == nil {
			return errors.New("it lies on no mount")
		}
		return d.mounted(*m, 0)
	}
	dev, name, err := d.find(s.path)
	if n, ok := strings.CutPrefix(s.path, "/dev/zram"); ok && isNumber(n) {
		back, err := d.t.line("sys/class/block/zram" + n + "/backing_dev")
		if missing(err) || err == nil && (back == "" || back == "none") {
			return nil
		}
		if err != nil {
			return err
		}
		if dev, _, err = d.find(back); err != nil {
			return err
		}
		return d.block(dev, 0)
	}
	if err != nil {
		return err
	}
	err = d.block(dev, 0)
	var plain plainError
	if errors.As(err, &plain) {
		return plainError(name)
	}
	return err
}
