package stage

import (
	"crypto/rand"
	"fmt"
	"math/big"
	"path/filepath"
	"strings"
)

// ClientID is how the gateway is known at the identity provider.
const ClientID = "portvakt"

// Names of the apps' files in the policy directory.
const (
	FileCRM      = "crm.yaml"
	FilePayments = "payments.yaml"
	FileDesk     = "desk.yaml"
	FileVoice    = "voice.yaml"
)

// CRMHost and PaymentsHost are the names a browser opens.
const (
	CRMHost      = "crm.demo.example"
	PaymentsHost = "payments.demo.example"
)

func (s *Stage) gatewayFile() string {
	return fmt.Sprintf(`# The demo's gateway. deploy/config/gateway.yaml shows every key.
data_dir: %s
public:
  listen: %s
  url: %s
tls:
  mode: internal
tunnel:
  listen: %s
health:
  listen: %s
identity:
  issuer: %s
  client_id: %s
location:
  database: %s
policy:
  source: directory
  directory: %s
`, filepath.Join(s.Dir, "data"), loopback(s.ports.Public), s.URL, loopback(s.ports.Tunnel), loopback(s.ports.Health),
		s.Issuer, ClientID, filepath.Join(s.Dir, "geo.mmdb"), s.Policy)
}

// appFiles are the app catalogue as it is at the start, by file name.
func (s *Stage) appFiles() map[string]string {
	return map[string]string{
		FileCRM: s.CRMFile("sales", "support"),
		FilePayments: fmt.Sprintf(`name: payments
title: Payments
protocol: http
hosts: [%s]
upstream: http://%s
allow: [127.0.0.1/32]
access:
  - groups: [support]
    posture: {disk_encryption: pass, host_firewall: pass}
    countries: [SE, FI]
`, PaymentsHost, loopback(s.ports.Payments)),
		FileDesk:  s.lineApp("desk", "Desk", "tcp", 7000, s.ports.Desk),
		FileVoice: s.lineApp("voice", "Voice", "udp", 4000, s.ports.Voice),
	}
}

// CRMFile is the CRM's file when these groups may use it. Nobody but leads may
// send it anything.
func (s *Stage) CRMFile(groups ...string) string {
	return fmt.Sprintf(`name: crm
title: Customers
protocol: http
hosts: [%s]
upstream: http://%s
allow: [127.0.0.1/32]
websocket: true
access:
  - groups: [%s]
    posture: {disk_encryption: pass, host_firewall: pass}
    countries: [SE, FI]
    methods: [GET, HEAD]
  - groups: [leads]
    posture: {disk_encryption: pass, host_firewall: pass}
    countries: [SE, FI]
`, CRMHost, loopback(s.ports.CRM), strings.Join(groups, ", "))
}

func (s *Stage) lineApp(name, title, protocol string, port, upstream int) string {
	return fmt.Sprintf(`name: %s
title: %s
protocol: %s
upstream: %s
ports: [%d]
allow: [127.0.0.1/32]
access:
  - groups: [sales, support]
    posture: {host_firewall: pass}
    countries: [SE, FI]
`, name, title, protocol, loopback(upstream), port)
}

// randomBelow returns a random number in [0, n).
func randomBelow(n int64) int {
	v, err := rand.Int(rand.Reader, big.NewInt(n))
	if err != nil {
		panic(err) // never: crypto/rand does not fail since Go 1.24
	}
	return int(v.Int64())
}
