//go:build unix

package policy_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/portvakt/portvakt/policy"
)

func TestOwnerAndMode(t *testing.T) {
	const app = "name: crm\nprotocol: http\nhosts: [crm.example.com]\nupstream: http://10.0.0.5\n"
	cases := []struct {
		name   string
		change func(t *testing.T, dir string)
		want   string // "" is accepted
	}{
		{"as it is", func(*testing.T, string) {}, ""},
		{"readable by all", func(t *testing.T, dir string) { chmod(t, dir, 0o755); chmod(t, dir+"/crm.yaml", 0o644) }, ""},
		{"group may write", func(t *testing.T, dir string) { chmod(t, dir+"/crm.yaml", 0o620) }, "DIR/crm.yaml: wanted a mode that only the owner may write, found 0620; run: chmod go-w DIR/crm.yaml"},
		{"others may write", func(t *testing.T, dir string) { chmod(t, dir+"/crm.yaml", 0o602) }, "DIR/crm.yaml: wanted a mode that only the owner may write, found 0602; run: chmod go-w DIR/crm.yaml"},
		{"directory of a group", func(t *testing.T, dir string) { chmod(t, dir, 0o770) }, "DIR: wanted a mode that only the owner may write, found 0770; run: chmod go-w DIR"},
		{"sticky directory", func(t *testing.T, dir string) { chmod(t, dir, 0o777|os.ModeSticky) }, "DIR: wanted a mode that only the owner may write, found 0777; run: chmod go-w DIR"},
		{"link to what others may write", func(t *testing.T, dir string) {
			target := filepath.Join(t.TempDir(), "x.yaml")
			write(t, target, strings.ReplaceAll(app, "crm", "other"))
			chmod(t, target, 0o666)
			symlink(t, target, dir+"/other.yaml")
		}, "DIR/other.yaml: wanted a mode that only the owner may write, found 0666; run: chmod go-w DIR/other.yaml"},
		{"link to what is sound", func(t *testing.T, dir string) {
			target := filepath.Join(t.TempDir(), "x.yaml")
			write(t, target, strings.ReplaceAll(app, "crm", "other"))
			symlink(t, target, dir+"/other.yaml")
		}, ""},
		{"dangling link", func(t *testing.T, dir string) { symlink(t, dir+"/gone", dir+"/other.yaml") }, "DIR/other.yaml: wanted a readable file: no such file or directory"},
		{"pipe", func(t *testing.T, dir string) {
			if err := syscall.Mkfifo(dir+"/other.yaml", 0o600); err != nil {
				t.Fatal(err)
			}
		}, "DIR/other.yaml: wanted a file, found a pipe"},
		{"directory as file", func(t *testing.T, dir string) {
			if err := os.Mkdir(dir+"/other.yaml", 0o700); err != nil {
				t.Fatal(err)
			}
		}, "DIR/other.yaml: wanted a file, found a directory"},
		{"too large", func(t *testing.T, dir string) {
			write(t, dir+"/other.yaml", "# "+strings.Repeat("x", policy.MaxFileSize))
		}, "DIR/other.yaml: wanted at most 1048576 bytes, found more"},
		{"too many", func(t *testing.T, dir string) {
			for i := range policy.MaxFiles {
				write(t, fmt.Sprintf("%s/x%d.yaml", dir, i), "")
			}
		}, "DIR: wanted at most 1000 policy files, found 1001"},
		{"no directory", func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}, "reading policy directory: open DIR: no such file or directory"},
		{"file as directory", func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			write(t, dir, app)
		}, "DIR: wanted a directory of policy files, found a file"},
		{"someone else's file", func(t *testing.T, dir string) {
			if os.Geteuid() != 0 {
				t.Skip("needs root to give a file away")
			}
			if err := os.Chown(dir+"/crm.yaml", 12345, 0); err != nil {
				t.Fatal(err)
			}
		}, "DIR/crm.yaml: wanted owner uid 0 (this service's user) or 0 (root), found uid 12345; run: chown 0 DIR/crm.yaml"},
		{"someone else's directory", func(t *testing.T, dir string) {
			if os.Geteuid() != 0 {
				t.Skip("needs root to give a directory away")
			}
			if err := os.Chown(dir, 12345, 0); err != nil {
				t.Fatal(err)
			}
		}, "DIR: wanted owner uid 0 (this service's user) or 0 (root), found uid 12345; run: chown 0 DIR"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := writeFiles(t, map[string]string{"crm.yaml": app})
			chmod(t, dir, 0o700)
			c.change(t, dir)
			_, err := policy.Load(dir, policy.LoadOptions{CheckOwner: true})
			got := ""
			if err != nil {
				got = strings.ReplaceAll(err.Error(), dir, "DIR")
			}
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
	t.Run("unchecked", func(t *testing.T) {
		dir := writeFiles(t, map[string]string{"crm.yaml": app})
		chmod(t, dir+"/crm.yaml", 0o666)
		if _, err := policy.Load(dir, policy.LoadOptions{}); err != nil {
			t.Error(err)
		}
	})
}
