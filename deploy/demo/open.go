package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/portvakt/portvakt/deploy/demo/stage"
)

// stayOpen sets the stage, says what there is to see, and waits for Ctrl-C.
func stayOpen(ctx context.Context, bin, self string, out io.Writer) error {
	fmt.Fprintln(out, "starting a company on loopback ...")
	s, err := stage.Up(ctx, stage.Config{Bin: bin, Self: self, Progress: out})
	if err != nil {
		if ctx.Err() != nil {
			return nil // Ctrl-C during the start; what was started has ended
		}
		return err
	}
	guide, err := describe(s)
	if err != nil {
		return errors.Join(err, s.Down())
	}
	fmt.Fprint(out, guide)
	var fell error
	select {
	case <-ctx.Done():
		fmt.Fprintln(out, "\nending ...")
	case fell = <-s.Fallen():
	}
	if err := s.Down(); err != nil || fell != nil {
		return errors.Join(fell, err)
	}
	fmt.Fprintln(out, "every program has ended and "+s.Dir+" is removed")
	return nil
}

// describe says what to open, whose password to type, and what to try.
func describe(s *stage.Stage) (string, error) {
	hash, err := spkiHash(s.CA)
	if err != nil {
		return "", err
	}
	agent := filepath.Join(s.Bin(), "portvakt-agent")
	anna, ben := s.Anna, s.Ben
	return fmt.Sprintf(`
Everything lives in %[1]s and goes when you press Ctrl-C.

WHO               e-mail                password        group     laptop's state directory
  Anna Alm        %-20[2]s  %-14[3]s  sales     %[4]s
  Ben Berg        %-20[5]s  %-14[6]s  support   %[7]s

LOG IN (opens the page of Dex; type the password above)
  %[8]s login --state %[4]s
  %[8]s login --state %[7]s

BROWSE AS ANNA (a throw-away profile that trusts only this demo's CA for its apps)
  chromium --user-data-dir=%[1]s/browser --no-first-run --proxy-pac-url=http://%[9]s/proxy.pac \
    --ignore-certificate-errors-spki-list=%[10]s https://%[11]s/ https://%[11]s/queue https://%[12]s/
  (as root add --no-sandbox; google-chrome takes the same words)

OR WITH CURL
  curl --proxy http://%[9]s --cacert %[13]s https://%[11]s/
  curl --proxy http://%[9]s --cacert %[13]s -H 'Accept: application/json' -X POST https://%[11]s/export
  curl --proxy http://%[9]s --cacert %[13]s -H 'Accept: application/json' https://%[12]s/
  curl --proxy http://%[14]s --cacert %[13]s https://%[12]s/          # Ben may, once he is logged in

THE DESK AND THE VOICE ECHO have a loopback port each on every laptop
  %[8]s apps --state %[4]s
  %[8]s status --state %[4]s
  %[8]s why payments --state %[4]s

TURN ANNA'S FIREWALL OFF (and on again with yes): only the demo's file, never this machine's firewall
  sed -i s/ENABLED=.*/ENABLED=no/ %[15]s

CHANGE THE POLICY: edit a file of %[16]s; it counts within a second

ADMINISTER
  %[17]s
  %[18]s
  %[19]s
  %[20]s

PLAY THE WHOLE STORY BY ITSELF: make demo ARGS=--script
`,
		s.Dir, anna.Person.Email, anna.Person.Password, anna.State, ben.Person.Email, ben.Person.Password, ben.State,
		agent, anna.Proxy, hash, stage.CRMHost, stage.PaymentsHost, s.CA, ben.Proxy, anna.FirewallFile(), s.Policy,
		s.GatewayCommand("devices list"), s.GatewayCommand("audit tail --follow"),
		s.GatewayCommand("why --app payments --subject 'Anna Alm'"), s.GatewayCommand("devices revoke DEVICE --reason 'lost on the train'"),
	), nil
}

// spkiHash names a certificate's key the way Chromium's flag wants it.
func spkiHash(pemFile string) (string, error) {
	b, err := os.ReadFile(pemFile)
	if err != nil {
		return "", fmt.Errorf("reading the gateway's CA: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return "", fmt.Errorf("%s holds no certificate", pemFile)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("reading the gateway's CA: %w", err)
	}
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:]), nil
}
