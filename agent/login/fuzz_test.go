package login_test

import (
	"net/url"
	"testing"

	"github.com/portvakt/portvakt/agent/login"
)

// What any page in the person's browser may send to the listener.
func FuzzCallback(f *testing.F) {
	for _, s := range []string{
		"state=a&code=b", "state=a&error=access_denied&error_description=x+y", "state=a&state=b&code=c", "code=%zz", "state=a;code=b", "iss=https%3A%2F%2Fidp&state=%00&code=%ff",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		a, err := login.Parse(raw)
		if err != nil {
			if a.State != "" || a.Code != "" {
				t.Errorf("a refused answer still says %+v", a)
			}
			return
		}
		q, err := url.ParseQuery(raw)
		if err != nil {
			t.Fatalf("net/url refuses what was accepted: %v", err)
		}
		if a.State == "" || a.Code == "" && a.Error == "" || q.Get("state") != a.State || q.Get("code") != a.Code || len(q["state"]) != 1 || len(q["code"]) > 1 {
			t.Errorf("%q became %+v", raw, a)
		}
	})
}
