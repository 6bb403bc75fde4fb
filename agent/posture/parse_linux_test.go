package posture_test

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portvakt/portvakt/agent/posture"
	"github.com/portvakt/portvakt/internal/wire"
)

func TestParseAssignments(t *testing.T) {
	for in, want := range map[string]map[string]string{
		"":                             {},
		"# c\n\n \t# d\n":              {},
		"A=1\nB='x y' # c\n\tC=\"\"\n": {"A": "1", "B": "x y", "C": ""},
		"A=1\nA=2":                     {"A": "2"},
		"A=":                           {"A": ""},
		"A= # c":                       {"A": ""},
		"A=a.b/c-d:e,f@g%h+i=j":        {"A": "a.b/c-d:e,f@g%h+i=j"},
		"A='$x`\\'":                    {"A": "$x`\\"},
		// A shell would run, expand or refuse these.
		"A = 1": nil, "A=1 B=2": nil, "export A=1": nil, "A=$B": nil, "A=`b`": nil, "A=\"$B\"": nil, "A='x": nil, "A=x'y'": nil,
		"A=\"x\"y": nil, "A=x;y": nil, "A=x#y": nil, "A='x'#y": nil, "1A=x": nil, "A-B=x": nil, "A": nil, "A=é": nil, "A=1\r\n": nil, "if x": nil, "A+=1": nil,
	} {
		got, err := posture.ParseAssignments(in)
		if (err != nil) != (want == nil) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
		if want != nil && !cmp.Equal(got, want) {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}

// What is accepted means to a shell what it means here.
func TestShellAgrees(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("needs sh")
	}
	for _, in := range []string{"A=1\nA=2\n", "A='x y' # c\n", "A=a.b/c-d:e,f@g%h+i=j\n", "A='$x`\\'\n", "A= # c\n", "A=~x\n"} {
		got, err := posture.ParseAssignments(in)
		if err != nil {
			continue
		}
		out, err := exec.Command(sh, "-c", in+`printf %s "$A"`).Output()
		if err != nil || string(out) != got["A"] {
			t.Errorf("%q: the shell reads %q (%v), we read %q", in, out, err, got["A"])
		}
	}
}

func TestParseMountinfo(t *testing.T) {
	for in, want := range map[string][]string{
		"36 35 98:0 /m / rw,noatime master:1 - ext3 /dev/root rw\n":                           {"/"},
		"36 35 98:0 /m /a\\040b\\134c rw shared:1 master:2 propagate_from:3 - ext3 /dev/x rw": nil,
		"36 35 98:0 / / rw - ext3 /dev/x\n36 35 0:5 / /a\\040b rw - tmpfs none rw\n":          {"/", "/a b"},
		"36 35 98:0 / / rw - ext3 /dev/x\n37 36 0:5 / /p rw - tmpfs  rw\n":                    {"/", "/p"}, // an empty source
		"": nil, "\n": nil, "36 35 98 / / rw - ext3 x": nil, "36 35 98:0 / rel rw - ext3 x": nil, "36 35 98:0 / / rw ext3 x": nil, "36 35 98:0 / / rw -": nil,
		"36 35 ../../x:0 / / rw - ext3 x": nil,
	} {
		if strings.Contains(in, "master:2") {
			in, want = "1 0 8:1 / / rw - ext4 x rw\n"+in, []string{"/", `/a b\c`}
		}
		got, err := posture.ParseMountinfo(in)
		if (err != nil) != (want == nil) || want != nil && !cmp.Equal(got, want) {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

func FuzzAssignments(f *testing.F) {
	f.Add("ENABLED=yes\nLOGLEVEL=\"low\" # x\n")
	f.Fuzz(func(t *testing.T, s string) {
		vars, err := posture.ParseAssignments(s)
		if err != nil {
			return
		}
		for k, v := range vars {
			if !regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`).MatchString(k) || strings.Contains(v, "\n") || !strings.Contains(s, v) {
				t.Fatalf("%q gave %q = %q", s, k, v)
			}
		}
	})
}

func FuzzMountinfo(f *testing.F) {
	f.Add("36 35 98:0 /m / rw,noatime master:1 - ext3 /dev/root rw\n")
	f.Fuzz(func(t *testing.T, s string) {
		points, err := posture.ParseMountinfo("1 0 8:1 / / rw - ext4 x rw\n" + s)
		for _, p := range points {
			if err != nil || p == "" || p[0] != '/' {
				t.Fatalf("%q gave %q, %v", s, points, err)
			}
		}
	})
}

func FuzzSwaps(f *testing.F) {
	f.Add("Filename Type Size Used Priority\n/dev/sda5 partition 1 0 -2\n")
	f.Fuzz(func(t *testing.T, s string) {
		paths, err := posture.ParseSwaps(s)
		for _, p := range paths {
			if err != nil || p == "" || p[0] != '/' {
				t.Fatalf("%q gave %q, %v", s, paths, err)
			}
		}
	})
}

func FuzzHelperAnswer(f *testing.F) {
	f.Add([]byte(`{"signals":[{"name":"host_firewall","state":"pass","value":"x","age_seconds":0}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		signals, err := posture.ParseAnswer(b)
		if err != nil && signals != nil {
			t.Fatal("signals beside an error")
		}
		for _, s := range signals {
			if s.Name != wire.SignalDiskEncryption && s.Name != wire.SignalHostFirewall || len(s.Value) > 256 || strings.ContainsAny(s.Value, "\n\x00") {
				t.Fatalf("accepted %+v", s)
			}
		}
	})
}
