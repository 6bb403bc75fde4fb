package story

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/portvakt/portvakt/deploy/demo/stage"
	"github.com/portvakt/portvakt/policy"
)

// input is Anna asking for something of the CRM from a good laptop at home.
func input(method, path string) *policy.Input {
	now := time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
	return &policy.Input{
		Time: now, Action: policy.ActionRequest, App: policy.AppRef{Name: "crm", Protocol: "http"},
		Device:  policy.Device{ID: "d1", Name: "anna-laptop", OS: "linux", KeyTier: "software", EnrolledAt: now.Add(-time.Hour)},
		Subject: &policy.Subject{Issuer: "http://127.0.0.1/dex", ID: "anna", Name: "Anna Alm", Groups: []string{"sales"}, AuthenticatedAt: now.Add(-time.Minute)},
		Session: &policy.Session{ID: "s1", OSUser: "1000:anna", StartedAt: now.Add(-time.Minute), ExpiresAt: now.Add(time.Hour)},
		Posture: policy.Posture{ReceivedAt: &now, Signals: map[string]policy.Signal{
			"disk_encryption": {State: "pass"}, "host_firewall": {State: "pass"},
		}},
		Location: policy.Location{Address: "127.10.0.1", Country: "SE"},
		Request:  &policy.Request{Method: method, Host: stage.CRMHost, Path: path},
	}
}

// The files that the demo writes mean what its story tells, and a bundle built
// from them says the same to stock OPA.
func TestTheDemosPolicy(t *testing.T) {
	s := stage.Catalogue(t.TempDir())
	if err := s.WriteCatalogue(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		files  map[string]string
		in     *policy.Input
		change func(*policy.Input)
		reason policy.Reason
	}{
		{name: "the list", in: input("GET", "/api/customers"), reason: policy.ReasonAllowed},
		{name: "export", in: input("POST", "/export"), reason: policy.ReasonMethodNotAllowed},
		{name: "firewall off", in: input("GET", "/"), reason: policy.ReasonPostureFailed, change: func(in *policy.Input) {
			in.Posture.Signals["host_firewall"] = policy.Signal{State: "fail", Value: "ufw: off"}
		}},
		{name: "refused country", in: input("GET", "/"), reason: policy.ReasonLocationNotAllowed, change: func(in *policy.Input) {
			in.Location = policy.Location{Address: stage.AddressRefused.String(), Country: s.Country(stage.AddressRefused)}
		}},
		{name: "payments", in: input("GET", "/"), reason: policy.ReasonGroupNotAllowed, change: func(in *policy.Input) {
			in.App.Name, in.Request.Host = "payments", stage.PaymentsHost
		}},
		{name: "group removed", files: map[string]string{stage.FileCRM: s.CRMFile("support")}, in: input("GET", "/"), reason: policy.ReasonGroupNotAllowed},
		{name: "Rego, the list", files: map[string]string{regoFile: regoText}, in: input("GET", "/api/customers"), reason: policy.ReasonPolicyDenied},
		{name: "Rego, the rest", files: map[string]string{regoFile: regoText}, in: input("GET", "/api/me"), reason: policy.ReasonAllowed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(s.Policy)); err != nil {
				t.Fatal(err)
			}
			for name, text := range tc.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			rev, err := policy.Load(dir, policy.LoadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if tc.change != nil {
				tc.change(tc.in)
			}
			e := policy.NewEngine(policy.EngineOptions{Timeout: 5 * time.Second})
			e.Activate(rev)
			got := e.Decide(t.Context(), tc.in)
			if got.Reason != tc.reason {
				t.Fatalf("got %+v, want %s", got, tc.reason)
			}
			bundle := filepath.Join(t.TempDir(), "b.tar.gz")
			f, err := os.Create(bundle)
			if err != nil {
				t.Fatal(err)
			}
			if err := rev.WriteBundle(f); err != nil {
				t.Fatal(err)
			}
			f.Close()
			v, err := evaluate(t.Context(), bundle, tc.in)
			if want := (verdict{got.Allow, string(got.Reason)}); err != nil || v != want {
				t.Errorf("stock OPA says %+v, %v; the engine said %+v", v, err, want)
			}
		})
	}
}

func TestCatalogueAddressesAreInPolicy(t *testing.T) {
	s := stage.Catalogue(t.TempDir())
	for addr, want := range map[netip.Addr]string{stage.AddressAnna: "SE", stage.AddressBen: "FI", stage.AddressRefused: "US"} {
		if got := s.Country(addr); got != want {
			t.Errorf("%s lies in %s, want %s", addr, got, want)
		}
	}
}
