package state_test

import (
	"encoding/pem"
	"testing"

	"github.com/portvakt/portvakt/agent/state"
)

// Certificates come from whoever answers an enrolment.
func FuzzParseCertificate(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := state.ParseCertificate(data)
		if (c == nil) != (err != nil) {
			t.Fatalf("%v, %v", c, err)
		}
		if err == nil {
			block, _ := pem.Decode(data)
			if string(block.Bytes) != string(c.Raw) {
				t.Error("another certificate than the one in the text")
			}
			state.DeviceID(c)
		}
	})
}
