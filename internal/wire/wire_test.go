package wire_test

import (
	"crypto/sha256"
	"encoding/json"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/internal/wire"
)

func TestCodeGoesThereAndBack(t *testing.T) {
	hash := sha256.Sum256([]byte("a root's key"))
	c := wire.NewCode(hash)
	got, err := wire.ParseCode("  " + c.String() + "\n")
	if err != nil || got != c {
		t.Fatalf("%v %v, want %v", got, err, c)
	}
	secret, err := wire.ParseSecret(c.SecretText())
	if err != nil || secret != c.SecretHash() {
		t.Errorf("the secret alone: %x %v", secret, err)
	}
	if other := wire.NewCode(hash); other.Secret == c.Secret {
		t.Error("two codes have one secret")
	}
}

func TestDamagedCodes(t *testing.T) {
	good := wire.NewCode([32]byte{1}).String()
	parts := strings.Split(good, ".")
	for name, s := range map[string]string{
		"empty":           "",
		"another version": "pv2." + parts[1] + "." + parts[2],
		"two parts":       parts[0] + "." + parts[1],
		"four parts":      good + ".x",
		"short secret":    "pv1." + parts[1][1:] + "." + parts[2],
		"short hash":      "pv1." + parts[1] + "." + parts[2][1:],
		"padding":         "pv1." + parts[1] + "==." + parts[2],
		"standard base64": "pv1." + parts[1] + ".+" + parts[2][1:],
		"loose last bits": "pv1." + parts[1][:len(parts[1])-1] + "_." + parts[2],
		"inner space":     "pv1." + parts[1] + ". " + parts[2],
		"half a line":     good[:30],
	} {
		if c, err := wire.ParseCode(s); err == nil {
			t.Errorf("%s: %q was read as %v", name, s, c)
		} else if strings.Contains(err.Error(), parts[1]) {
			t.Errorf("%s: the error gives the secret away: %v", name, err)
		}
	}
}

// FuzzParseCode: what is accepted is written the same way again, so that one
// code has one form.
func FuzzParseCode(f *testing.F) {
	f.Add(wire.NewCode([32]byte{1}).String())
	f.Add("pv1..")
	f.Add("pv1.AAAAAAAAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := wire.ParseCode(s)
		if err == nil && c.String() != strings.TrimSpace(s) {
			t.Errorf("%q is also %q", s, c)
		}
	})
}

func TestDecodeStrict(t *testing.T) {
	for text, ok := range map[string]bool{
		`{"csr":"x"}`:              true,
		` {"csr":"x"} `:            true,
		`{}`:                       true,
		`{"CSR":"x","cssr":"y"}`:   false,
		`{"csr":"x"} {}`:           false,
		`{"csr":"x"}]`:             false,
		`{"csr":1}`:                false,
		`[]`:                       false,
		``:                         false,
		`{"csr":"x"`:               false,
		`{"csr":"x","extra":null}`: false,
	} {
		if err := wire.DecodeStrict([]byte(text), &wire.RenewRequest{}); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// FuzzReport: a posture report that is accepted says the same when it is
// written again; nothing in it was passed over.
func FuzzReport(f *testing.F) {
	f.Add([]byte(`{"device_id":"d","nonce":"n","boot_id":"b","time":"2026-11-21T20:00:00Z","signals":[{"name":"host_firewall","state":"pass","age_seconds":0}]}`))
	f.Add([]byte(`{"signals":[{"name":"host_firewall","state":true}]}`))
	f.Add([]byte(`{"signals":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var r, again wire.Report
		if wire.DecodeStrict(data, &r) != nil {
			return
		}
		text, err := json.Marshal(r)
		if err != nil {
			return // a time of a year that JSON does not write
		}
		if err := wire.DecodeStrict(text, &again); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if len(again.Signals) != len(r.Signals) || again.Nonce != r.Nonce || again.DeviceID != r.DeviceID {
			t.Errorf("%s became %s", data, text)
		}
	})
}

func TestErrorReadsAloud(t *testing.T) {
	for _, c := range []struct {
		err  wire.Error
		want string
	}{
		{wire.Error{Code: "x"}, "x"},
		{wire.Error{Code: "x", Message: "It failed."}, "It failed."},
		{wire.Error{Code: "x", Message: "It failed.", Remedy: "Try again."}, "It failed. Try again."},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
