package dns_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/portvakt/portvakt/agent/dns"
)

// lead makes a link in one step, as NetworkManager and resolvconf do.
func lead(t *testing.T, root, name, to string) {
	t.Helper()
	must(t, os.Symlink(to, filepath.Join(root, name+".new")))
	must(t, os.Rename(filepath.Join(root, name+".new"), filepath.Join(root, name)))
}

// rewrite makes a file anew in one step.
func rewrite(t *testing.T, root, name, text string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(root, name+".new"), []byte(text), 0o644))
	must(t, os.Rename(filepath.Join(root, name+".new"), filepath.Join(root, name)))
}

// asked waits until the gateway is asked first.
func asked(t *testing.T, root, name string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if text, err := os.ReadFile(filepath.Join(root, name)); err == nil {
			if s := servers(string(text)); len(s) > 0 && s[0] == "100.96.0.1" {
				return
			}
		}
	}
	t.Errorf("%s was not taken over", name)
}

const (
	first  = "nameserver 203.0.113.1\n"
	second = "nameserver 203.0.113.2\n"
)

// Whatever the name leads to, now and later, is followed.
func TestTheWayChanges(t *testing.T) {
	for name, c := range map[string]struct {
		files  map[string]string
		link   string // of etc/resolv.conf, if it is one at first
		change func(t *testing.T, root string)
		at     string // what is taken over, and put back as second
	}{
		"the file becomes a link": {
			map[string]string{"etc/resolv.conf": home, "run/nm/resolv.conf": first},
			"",
			func(t *testing.T, root string) {
				lead(t, root, "etc/resolv.conf", "../run/nm/resolv.conf")
				asked(t, root, "run/nm/resolv.conf")
				rewrite(t, root, "run/nm/resolv.conf", second)
			}, "run/nm/resolv.conf",
		},
		"the link becomes a file": {
			map[string]string{"etc/x": "", "run/nm/resolv.conf": first},
			"../run/nm/resolv.conf",
			func(t *testing.T, root string) {
				rewrite(t, root, "etc/resolv.conf", home)
				asked(t, root, "etc/resolv.conf")
				if got := read(t, root, "run/nm/resolv.conf"); got != first {
					t.Errorf("the former one is %q", got)
				}
				rewrite(t, root, "etc/resolv.conf", second)
			}, "etc/resolv.conf",
		},
		"the directory is made anew": {
			map[string]string{"etc/x": "", "run/nm/resolv.conf": first},
			"../run/nm/resolv.conf",
			func(t *testing.T, root string) {
				must(t, os.RemoveAll(filepath.Join(root, "run/nm")))
				must(t, os.Mkdir(filepath.Join(root, "run/nm"), 0o755))
				rewrite(t, root, "run/nm/resolv.conf", second)
			}, "run/nm/resolv.conf",
		},
		"the directory comes later": {
			map[string]string{"etc/x": ""},
			"../run/nm/deep/resolv.conf",
			func(t *testing.T, root string) {
				must(t, os.MkdirAll(filepath.Join(root, "run/nm/deep"), 0o755))
				rewrite(t, root, "run/nm/deep/resolv.conf", second)
			}, "run/nm/deep/resolv.conf",
		},
		"the file comes later": {
			map[string]string{"etc/x": ""},
			"",
			func(t *testing.T, root string) { rewrite(t, root, "etc/resolv.conf", second) }, "etc/resolv.conf",
		},
		"a link within the way leads elsewhere": {
			map[string]string{"etc/x": "", "run/a/resolv.conf": first, "run/b/resolv.conf": second},
			"../run/now/resolv.conf",
			func(t *testing.T, root string) {
				lead(t, root, "run/now", "a")
				asked(t, root, "run/a/resolv.conf")
				lead(t, root, "run/now", "b")
				asked(t, root, "run/b/resolv.conf")
				if got := read(t, root, "run/a/resolv.conf"); got != first {
					t.Errorf("the former one is %q", got)
				}
			}, "run/b/resolv.conf",
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := tree(t, c.files)
			if c.link != "" {
				lead(t, root, "etc/resolv.conf", c.link)
			}
			m := start(t, dns.Config{Index: 7, Root: root, Bus: "unix:path=" + root + "/no-bus"})
			_, _ = m.Set(t.Context(), setting) // where there is no file yet it fails
			c.change(t, root)
			asked(t, root, c.at)
			must(t, m.Undo(t.Context()))
			if got := read(t, root, c.at); got != second {
				t.Errorf("undone it is %q", got)
			}
			backupGone(t, root)
		})
	}
}

// What was written is put back where it was written.
func TestUndoWhereItWasWritten(t *testing.T) {
	for name, undo := range map[string]func(t *testing.T, m *dns.Manager, cfg dns.Config){
		"by itself":     func(t *testing.T, m *dns.Manager, _ dns.Config) { must(t, m.Undo(t.Context())) },
		"by a next one": func(t *testing.T, _ *dns.Manager, cfg dns.Config) { must(t, start(t, cfg).Recover(t.Context())) },
		"as a next one sets": func(t *testing.T, _ *dns.Manager, cfg dns.Config) {
			m := dns.New(cfg)
			set(t, m, setting, dns.ResolvConf)
			must(t, m.Undo(t.Context()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			const rotating = "options rotate\n" + first
			root := tree(t, map[string]string{"etc/x": "", "run/a/resolv.conf": rotating, "run/b/resolv.conf": second})
			lead(t, root, "etc/resolv.conf", "../run/a/resolv.conf")
			cfg := dns.Config{Index: 7, Root: root, Bus: "unix:path=" + root + "/no-bus"}
			m := dns.New(cfg) // nobody watches
			set(t, m, setting, dns.ResolvConf)
			lead(t, root, "etc/resolv.conf", "../run/b/resolv.conf")
			undo(t, m, cfg)
			for file, want := range map[string]string{"run/a/resolv.conf": rotating, "run/b/resolv.conf": second} {
				if got := read(t, root, file); got != want {
					t.Errorf("%s is %q", file, got)
				}
			}
			backupGone(t, root)
		})
	}
}
