package identity

import (
	"encoding/json"
	"testing"
)

func FuzzParseClaims(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseClaims(data)
		if err != nil {
			return
		}
		var m map[string]json.RawMessage
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatalf("parseClaims took what is not a JSON object: %q", data)
		}
		if len(m) != len(c) {
			t.Fatalf("%d members, encoding/json has %d: %q", len(c), len(m), data)
		}
		for name := range c {
			_ = c.text(name)
			_, _ = c.time(name)
			if list, err := c.texts(name); err != nil && list != nil {
				t.Fatalf("a list beside an error: %q", data)
			}
		}
	})
}
