package identity

import (
	"fmt"
	"testing"
	"time"

	"github.com/portvakt/portvakt/policy"
)

// However many logouts come, what is remembered of them is bounded, and it ends.
func TestLogoutsAreForgotten(t *testing.T) {
	var s seenLogouts
	at := time.Unix(1_800_000_000, 0)
	of := func(sub string) Login { return Login{Subject: policy.Subject{ID: sub}, IssuedAt: at} }
	for n := range 2*maxSeen + 1 {
		x := fmt.Sprint(n)
		for again := range 2 { // the first could not be carried out
			if !s.add(Logout{Subject: x, SessionID: []string{"", x}[n%2], jti: x, at: at}, at) {
				t.Fatalf("%d was refused", n)
			}
			if again == 0 {
				s.allow(x)
			}
		}
	}
	if len(s.byJTI) > maxSeen || len(s.people) > maxSeen || len(s.ended) > maxSeen || s.order.Len() > maxSeen {
		t.Errorf("remembered: %d tokens, %d people, %d sessions", s.order.Len(), len(s.people), len(s.ended))
	}
	if last := fmt.Sprint(2 * maxSeen); s.over(of("0")) || !s.over(of(last)) || s.add(Logout{Subject: last, jti: last, at: at}, at) {
		t.Error("the oldest is not the one that was forgotten")
	}
	if !s.add(Logout{Subject: "late", jti: "late", at: at}, at.Add(seenLife+time.Second)) {
		t.Error("a late one was refused")
	}
	if s.order.Len() != 1 || len(s.byJTI) != 1 || len(s.people) != 1 || len(s.ended) != 0 {
		t.Errorf("left: %d tokens, %d by jti, %d people, %d sessions", s.order.Len(), len(s.byJTI), len(s.people), len(s.ended))
	}
}
