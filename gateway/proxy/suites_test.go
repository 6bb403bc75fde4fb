package proxy_test

import (
	"crypto/tls"
	"testing"
)

// TLS 1.2 is spoken with what HTTP/2 may be spoken with, and with nothing else.
func TestCipherSuites(t *testing.T) {
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": newEcho(t).URL})
	for _, c := range []struct {
		suite uint16
		ok    bool
	}{
		{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, true},
		{tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, true},
		{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, false},
		{tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, false},
	} {
		conn := tls.Client(w.dial("crm.test", 443), &tls.Config{
			RootCAs: w.roots, ServerName: "crm.test", NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{c.suite},
		})
		if err := conn.Handshake(); (err == nil) != c.ok {
			t.Errorf("%s: %v", tls.CipherSuiteName(c.suite), err)
		}
		_ = conn.Close()
	}
}
