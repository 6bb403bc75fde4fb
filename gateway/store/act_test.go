package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/store"
)

func TestActs(t *testing.T) {
	ctx := t.Context()
	s := fresh(t)
	at := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	first := store.Act{ID: "act-1", Kind: "lockdown_off", Target: "lock-1", Reason: "over", RequestedBy: "os:1:a", RequestedAt: at, ExpiresAt: at.Add(time.Hour)}
	put := func(a store.Act, want string) {
		t.Helper()
		if got, err := s.PutAct(ctx, a); err != nil || got.ID != want {
			t.Errorf("putting %s: %+v %v", a.ID, got, err)
		}
	}
	put(first, "act-1")
	second := first
	second.ID, second.RequestedBy = "act-2", "os:2:b"
	put(second, "act-1")
	other := second
	other.ID, other.Target = "act-3", "lock-2"
	put(other, "act-3")
	late := second
	late.RequestedAt = at.Add(time.Hour)
	put(late, "act-2") // the first has expired by then

	for name, c := range map[string]struct {
		id   string
		when time.Time
		want error
	}{
		"unknown":        {"act-9", at, store.ErrNotFound},
		"expired":        {"act-1", at.Add(time.Hour), store.ErrDecided},
		"in its last ns": {"act-1", at.Add(time.Hour - 1), nil},
	} {
		if err := s.DecideAct(ctx, c.id, "approved", "os:2:b", c.when); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, outcome := range []string{"approved", "rejected"} {
		if err := s.DecideAct(ctx, "act-3", outcome, "os:2:b", at); (err != nil) != (outcome == "rejected") {
			t.Errorf("%s: %v", outcome, err)
		}
	}
	if a, err := s.Act(ctx, "act-3"); err != nil || a.Outcome != "approved" || a.DecidedBy != "os:2:b" || !a.DecidedAt.Equal(at) || a.Pending(at) {
		t.Errorf("%+v %v", a, err)
	}
	if all, err := s.Acts(ctx, at.Add(time.Minute)); err != nil || len(all) != 1 || all[0].ID != "act-2" {
		t.Errorf("%+v %v", all, err)
	}
}
