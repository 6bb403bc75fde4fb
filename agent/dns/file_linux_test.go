package dns_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/agent/dns"
)

const home = "# by dhclient\nsearch home.arpa\nnameserver 192.0.2.53\nnameserver 192.0.2.54\noptions edns0 trust-ad\n"

func plain(t *testing.T, text string) (string, dns.Config) {
	t.Helper()
	root := tree(t, map[string]string{"etc/resolv.conf": text})
	return root, dns.Config{Index: 7, Root: root, Bus: "unix:path=" + root + "/no-bus"}
}

// servers of a resolv.conf, in their order.
func servers(text string) (out []string) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "nameserver" {
			out = append(out, f[1])
		}
	}
	return out
}

func backupGone(t *testing.T, root string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(root, "etc/resolv.conf.portvakt")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the backup stays: %v", err)
	}
}

func TestResolvConf(t *testing.T) {
	for name, text := range map[string]string{
		"usual":            home,
		"empty":            "",
		"no final newline": "nameserver 192.0.2.53",
		"rotating":         "options rotate timeout:1\nnameserver 192.0.2.53\nnameserver 192.0.2.54\n",
		"only rotating":    "nameserver 192.0.2.53\noptions rotate\n",
		"windows":          "nameserver 192.0.2.53\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			root, cfg := plain(t, text)
			must(t, os.Chmod(filepath.Join(root, "etc/resolv.conf"), 0o640))
			m := start(t, cfg)
			set(t, m, setting, dns.ResolvConf)
			got := read(t, root, "etc/resolv.conf")
			if s := servers(got); len(s) != 1+len(servers(text)) || s[0] != "100.96.0.1" {
				t.Errorf("servers %v in %q", s, got)
			}
			if strings.Contains(text, "edns0") && !strings.Contains(got, "options edns0 trust-ad\n") {
				t.Errorf("the options are gone: %q", got)
			}
			for _, l := range strings.Split(got, "\n") {
				if f := strings.Fields(l); len(f) > 0 && f[0] == "options" && strings.Contains(l, "rotate") {
					t.Errorf("the servers are asked by turns: %q", l)
				}
			}
			set(t, m, setting, dns.ResolvConf)
			if again := read(t, root, "etc/resolv.conf"); again != got {
				t.Errorf("set twice it is %q", again)
			}
			must(t, m.Undo(t.Context()))
			if back := read(t, root, "etc/resolv.conf"); back != text {
				t.Errorf("undone it is %q, was %q", back, text)
			}
			if info, err := os.Stat(filepath.Join(root, "etc/resolv.conf")); err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("undone its mode is %v %v", info.Mode(), err)
			}
			backupGone(t, root)
		})
	}
}

// A killed process is undone by the next one, whatever was killed when.
func TestResolvConfAfterACrash(t *testing.T) {
	t.Run("after the file was written", func(t *testing.T) {
		root, cfg := plain(t, home)
		set(t, dns.New(cfg), setting, dns.ResolvConf)
		must(t, start(t, cfg).Recover(t.Context()))
		if got := read(t, root, "etc/resolv.conf"); got != home {
			t.Errorf("it is %q", got)
		}
		backupGone(t, root)
	})
	t.Run("between backup and file", func(t *testing.T) {
		root, cfg := plain(t, home)
		must(t, os.WriteFile(filepath.Join(root, "etc/resolv.conf.portvakt"), []byte(home), 0o644))
		must(t, start(t, cfg).Recover(t.Context()))
		if got := read(t, root, "etc/resolv.conf"); got != home {
			t.Errorf("it is %q", got)
		}
		backupGone(t, root)
	})
	t.Run("and another program rewrote it", func(t *testing.T) {
		root, cfg := plain(t, home)
		set(t, dns.New(cfg), setting, dns.ResolvConf)
		const later = "nameserver 203.0.113.53\n"
		must(t, os.WriteFile(filepath.Join(root, "etc/resolv.conf"), []byte(later), 0o644))
		must(t, start(t, cfg).Recover(t.Context()))
		if got := read(t, root, "etc/resolv.conf"); got != later {
			t.Errorf("an old file came back over the new one: %q", got)
		}
		backupGone(t, root)
	})
	t.Run("and the backup is lost", func(t *testing.T) {
		root, cfg := plain(t, home)
		set(t, dns.New(cfg), setting, dns.ResolvConf)
		must(t, os.Remove(filepath.Join(root, "etc/resolv.conf.portvakt")))
		must(t, start(t, cfg).Recover(t.Context()))
		if got := read(t, root, "etc/resolv.conf"); got != home {
			t.Errorf("it is %q", got)
		}
	})
	t.Run("and another program added to it", func(t *testing.T) {
		root, cfg := plain(t, home)
		set(t, dns.New(cfg), setting, dns.ResolvConf)
		path := filepath.Join(root, "etc/resolv.conf")
		must(t, os.WriteFile(path, []byte(read(t, root, "etc/resolv.conf")+"search new.example\n"), 0o644))
		must(t, start(t, cfg).Recover(t.Context()))
		if got := read(t, root, "etc/resolv.conf"); got != home+"search new.example\n" {
			t.Errorf("it is %q", got)
		}
	})
	t.Run("and a new one sets before it recovers", func(t *testing.T) {
		root, cfg := plain(t, home)
		set(t, dns.New(cfg), setting, dns.ResolvConf)
		m := dns.New(cfg)
		set(t, m, setting, dns.ResolvConf)
		if s := servers(read(t, root, "etc/resolv.conf")); len(s) != 3 {
			t.Errorf("servers %v", s)
		}
		must(t, m.Undo(t.Context()))
		if got := read(t, root, "etc/resolv.conf"); got != home {
			t.Errorf("it is %q", got)
		}
	})
	t.Run("nothing was there", func(t *testing.T) {
		root, cfg := plain(t, home)
		must(t, start(t, cfg).Recover(t.Context()))
		if got := read(t, root, "etc/resolv.conf"); got != home {
			t.Errorf("it is %q", got)
		}
	})
}

// A lease renewed under way rewrites the file: the new servers stay, ours
// comes back in front, and in the end the newest file is what is left.
func TestResolvConfRewritten(t *testing.T) {
	root, cfg := plain(t, home)
	m := start(t, cfg)
	set(t, m, setting, dns.ResolvConf)
	const lease = "nameserver 203.0.113.53\n"
	path := filepath.Join(root, "etc/resolv.conf")
	// dhclient and NetworkManager replace the file.
	eventually(t, "ours is in front of the new one", func() bool {
		if servers(read(t, root, "etc/resolv.conf"))[0] == "100.96.0.1" && strings.Contains(read(t, root, "etc/resolv.conf"), lease) {
			return true
		}
		if !strings.Contains(read(t, root, "etc/resolv.conf"), lease) {
			must(t, os.WriteFile(path+".new", []byte(lease), 0o644))
			must(t, os.Rename(path+".new", path))
		}
		return false
	})
	must(t, m.Undo(t.Context()))
	if got := read(t, root, "etc/resolv.conf"); got != lease {
		t.Errorf("undone it is %q", got)
	}
}

// A link stays a link; what it leads to is replaced.
func TestResolvConfIsALink(t *testing.T) {
	root := tree(t, map[string]string{"run/resolvconf/resolv.conf": home})
	must(t, os.Symlink("../run/resolvconf/resolv.conf", filepath.Join(root, "etc/resolv.conf")))
	m := start(t, dns.Config{Root: root, Bus: "unix:path=" + root + "/no-bus"})
	set(t, m, setting, dns.ResolvConf)
	if to, err := os.Readlink(filepath.Join(root, "etc/resolv.conf")); err != nil || to != "../run/resolvconf/resolv.conf" {
		t.Errorf("the link leads to %q %v", to, err)
	}
	if s := servers(read(t, root, "run/resolvconf/resolv.conf")); len(s) != 3 {
		t.Errorf("servers %v", s)
	}
	must(t, m.Undo(t.Context()))
	if got := read(t, root, "run/resolvconf/resolv.conf"); got != home {
		t.Errorf("undone it is %q", got)
	}
}

func TestNoResolvConf(t *testing.T) {
	root := tree(t, nil)
	m := start(t, dns.Config{Root: root, Bus: "unix:path=" + root + "/no-bus"})
	if _, err := m.Set(t.Context(), setting); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Set: %v", err)
	}
	must(t, m.Undo(t.Context()))
}

// FuzzResolvConf: whatever a resolv.conf holds, ours comes first and what is
// taken out again is all that was put in.
func FuzzResolvConf(f *testing.F) {
	f.Add([]byte(home))
	f.Add([]byte("options rotate\nnameserver 192.0.2.53"))
	f.Add([]byte("# portvakt end\nnameserver 192.0.2.53\r\n"))
	f.Fuzz(func(t *testing.T, base []byte) {
		if _, ours := dns.Strip(base); ours {
			return
		}
		text := dns.Compose(base, setting)
		if s := dns.Nameservers(string(text)); len(s) == 0 || s[0] != "100.96.0.1" {
			t.Fatalf("%q has servers %v", text, s)
		}
		back, ours := dns.Strip(text)
		if !ours || string(back) != string(dns.WithoutRotate(base)) {
			t.Fatalf("%q came back as %q", base, back)
		}
	})
}

// becomes waits for a file to be as it should.
func becomes(t *testing.T, root, name, want string) {
	t.Helper()
	var got string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if text, err := os.ReadFile(filepath.Join(root, name)); err == nil {
			if got = string(text); got == want {
				return
			}
		}
	}
	t.Errorf("%s is %q, want %q", name, got, want)
}

// What cannot be undone is not done, and is undone as soon as it can be.
func TestUndoGoesOn(t *testing.T) {
	for name, at := range map[string]string{
		"by itself":           "etc/resolv.conf.portvakt", // nobody watches it
		"as the file changes": "etc/resolv.conf",
	} {
		t.Run(name, func(t *testing.T) {
			root, cfg := plain(t, home)
			m := start(t, cfg)
			set(t, m, setting, dns.ResolvConf)
			path := filepath.Join(root, at)
			must(t, os.Rename(path, path+".aside"))
			must(t, os.Mkdir(path, 0o755))
			for range 2 {
				if err := m.Undo(t.Context()); err == nil {
					t.Error("it is said to be undone")
				}
			}
			must(t, os.Remove(path))
			must(t, os.Rename(path+".aside", path))
			becomes(t, root, "etc/resolv.conf", home)
			must(t, m.Undo(t.Context()))
			backupGone(t, root)
		})
	}
	t.Run("set meanwhile", func(t *testing.T) {
		const rotating = "options rotate\nnameserver 192.0.2.53\n"
		root, cfg := plain(t, rotating)
		m := start(t, cfg)
		set(t, m, setting, dns.ResolvConf)
		path := filepath.Join(root, "etc/resolv.conf.portvakt")
		must(t, os.Rename(path, path+".aside"))
		must(t, os.Mkdir(path, 0o755))
		if err := m.Undo(t.Context()); err == nil {
			t.Error("it is said to be undone")
		}
		must(t, os.Remove(path))
		must(t, os.Rename(path+".aside", path))
		set(t, m, setting, dns.ResolvConf)
		if s := servers(read(t, root, "etc/resolv.conf")); len(s) != 2 || s[0] != "100.96.0.1" {
			t.Errorf("servers are %v", s)
		}
		must(t, m.Undo(t.Context()))
		becomes(t, root, "etc/resolv.conf", rotating)
	})
	t.Run("of a former process", func(t *testing.T) {
		root, cfg := plain(t, home)
		set(t, dns.New(cfg), setting, dns.ResolvConf)
		path := filepath.Join(root, "etc/resolv.conf.portvakt")
		must(t, os.Rename(path, path+".aside"))
		must(t, os.Mkdir(path, 0o755))
		if err := start(t, cfg).Recover(t.Context()); err == nil {
			t.Error("it is said to be undone")
		}
		must(t, os.Remove(path))
		must(t, os.Rename(path+".aside", path))
		becomes(t, root, "etc/resolv.conf", home)
	})
}

// A VPN's program may have copied the file while our lines stood in it, and put its
// copy back when nobody is there to answer.
func TestAnOldCopyComesBack(t *testing.T) {
	root, cfg := plain(t, home)
	m := start(t, cfg)
	path := filepath.Join(root, "etc/resolv.conf")
	for range 2 {
		set(t, m, setting, dns.ResolvConf)
		old := read(t, root, "etc/resolv.conf")
		must(t, m.Undo(t.Context()))
		must(t, os.WriteFile(path, []byte("nameserver 203.0.113.53\n"), 0o644))
		must(t, os.WriteFile(path, []byte(old), 0o644))
		becomes(t, root, "etc/resolv.conf", home)
	}
	backupGone(t, root)
}

// A full disk has no room for a second file, and need not.
func TestUndoOnAFullDisk(t *testing.T) {
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("needs root and the right to mount a tmpfs:", err)
	}
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	must(t, os.Mkdir(filepath.Join(root, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "etc/resolv.conf"), []byte(home), 0o644))
	m := start(t, dns.Config{Index: 7, Root: root, Bus: "unix:path=" + root + "/no-bus"})
	set(t, m, setting, dns.ResolvConf)
	if err := os.WriteFile(filepath.Join(root, "ballast"), bytes.Repeat([]byte("x"), 64<<10), 0o600); err == nil {
		t.Fatal("the disk is not full")
	}
	must(t, m.Undo(t.Context()))
	if got := read(t, root, "etc/resolv.conf"); got != home {
		t.Errorf("it is %q", got)
	}
	backupGone(t, root)
}
