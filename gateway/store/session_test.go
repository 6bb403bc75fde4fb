package store_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/store"
)

func registration(device, key, boot string, created time.Time) store.Registration {
	return store.Registration{
		DeviceID: device, TunnelKey: hash(key), PresharedKey: hash("psk " + key), TokenHash: hash("token " + key),
		BootID: boot, AgentVersion: "v1", PostQuantum: true, CreatedAt: created, ExpiresAt: created.Add(12 * time.Hour),
	}
}

func putSession(t *testing.T, s *store.Store, id, device, boot string) store.Session {
	t.Helper()
	se := store.Session{
		ID: id, DeviceID: device, OSUser: "1000:asa", Subject: subject(), BootID: boot,
		StartedAt: t0, ExpiresAt: t0.Add(10 * time.Hour), LastSeen: t0,
	}
	if err := s.PutSession(t.Context(), se); err != nil {
		t.Fatal(err)
	}
	return se
}

func get(t *testing.T, s *store.Store, id string) store.Session {
	t.Helper()
	se, err := s.Session(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return se
}

func TestRegistrationIsReplaced(t *testing.T) {
	s := fresh(t)
	enrol(t, s, "d1")
	enrol(t, s, "d2")
	r1 := registration("d1", "k1", "b1", t0)
	for _, r := range []store.Registration{registration("d1", "k0", "b0", t0), r1, registration("d2", "k2", "b2", t0)} {
		if _, err := s.PutRegistration(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		r   store.Registration
		err error
	}{
		"key of another device": {registration("d1", "k2", "b1", t0), store.ErrKeyTaken},
		"unknown device":        {registration("x", "k9", "b1", t0), store.ErrNotFound},
	} {
		if _, err := s.PutRegistration(t.Context(), c.r); !errors.Is(err, c.err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.PutRegistration(t.Context(), store.Registration{DeviceID: "d1"}); err == nil {
		t.Error("a registration without a key was stored")
	}
	until := t0.Add(20 * time.Hour)
	if err := s.ExtendRegistration(t.Context(), "d1", until); err != nil {
		t.Error(err)
	}
	r1.ExpiresAt = until
	rs, err := s.Registrations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	same(t, "registrations", rs, []store.Registration{r1, registration("d2", "k2", "b2", t0)})

	for range 2 { // the second time there is nothing to delete
		if err := s.DeleteRegistration(t.Context(), registration("d2", "k2", "b2", t0).TunnelKey); err != nil {
			t.Error(err)
		}
	}
	if err := s.ExtendRegistration(t.Context(), "d2", until); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%v", err)
	}
	// A key that nobody holds any more may be registered.
	if _, err := s.PutRegistration(t.Context(), registration("d1", "k2", "b1", t0)); err != nil {
		t.Error(err)
	}
}

// What is known of a tunnel outlives the process and a new registration of its
// key, and goes with the key.
func TestKeepTunnels(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store", "gateway.db")
	s := open(t, options(path))
	enrol(t, s, "d1")
	enrol(t, s, "d2")
	r1, r2 := registration("d1", "k1", "b1", t0), registration("d2", "k2", "b2", t0)
	for _, r := range []store.Registration{r1, r2} {
		if _, err := s.PutRegistration(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	r1.Tunnel = store.Tunnel{Endpoint: netip.MustParseAddrPort("[2001:db8::1]:4001"), HandshakeAt: t0.Add(time.Hour), Initiation: make([]byte, 148)}
	tunnels := map[[32]byte]store.Tunnel{r1.TunnelKey: r1.Tunnel, hash("unknown"): r1.Tunnel}
	if err := s.KeepTunnels(t.Context(), tunnels); err != nil {
		t.Fatal(err)
	}
	r1.BootID = "b9"
	if _, err := s.PutRegistration(t.Context(), r1); err != nil {
		t.Fatal(err)
	}
	s = open(t, options(path))
	rs, err := s.Registrations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	same(t, "registrations", rs, []store.Registration{r1, r2})
	r3 := registration("d1", "k3", "b9", t0)
	if _, err := s.PutRegistration(t.Context(), r3); err != nil {
		t.Fatal(err)
	}
	if rs, err = s.Registrations(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, "registrations", rs, []store.Registration{r3, r2})
}

func TestARegistrationTakesTheSessionAlong(t *testing.T) {
	for name, c := range map[string]struct {
		boot    string
		seen    time.Duration // after t0
		connect time.Duration
		resumed bool
		reason  string
		ended   time.Duration
	}{
		"same boot, at once":        {"b1", 0, time.Second, true, "", 0},
		"seen 10 minutes before":    {"b1", time.Minute, 11 * time.Minute, true, "", 0},
		"a nanosecond longer":       {"b1", time.Minute, 11*time.Minute + 1, false, store.EndSuperseded, 11*time.Minute + 1},
		"another boot":              {"b2", 0, time.Second, false, store.EndSuperseded, time.Second},
		"no boot":                   {"", 0, time.Second, false, store.EndSuperseded, time.Second},
		"expired at this moment":    {"b1", 10*time.Hour - 1, 10 * time.Hour, false, store.EndExpired, 10 * time.Hour},
		"expired long ago":          {"b1", 0, 20 * time.Hour, false, store.EndExpired, 10 * time.Hour},
		"a nanosecond from its end": {"b1", 10*time.Hour - 2, 10*time.Hour - 1, true, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := fresh(t)
			enrol(t, s, "d1")
			enrol(t, s, "d2")
			want := putSession(t, s, "s1", "d1", "b1")
			other := putSession(t, s, "s2", "d2", "b1")
			want.LastSeen = t0.Add(c.seen)
			if err := s.TouchSessions(t.Context(), []string{"s1", "unknown"}, want.LastSeen); err != nil {
				t.Fatal(err)
			}
			resumed, err := s.PutRegistration(t.Context(), registration("d1", "k1", c.boot, t0.Add(c.connect)))
			if err != nil {
				t.Fatal(err)
			}
			if (resumed != nil) != c.resumed {
				t.Errorf("resumed: %v", resumed)
			}
			if c.resumed {
				same(t, "resumed", *resumed, want)
			} else {
				want.EndedAt, want.EndReason = t0.Add(c.ended), c.reason
			}
			same(t, "session", get(t, s, "s1"), want)
			same(t, "the other device's", get(t, s, "s2"), other)
		})
	}
	t.Run("two sessions without a boot", func(t *testing.T) {
		s := fresh(t)
		enrol(t, s, "d1")
		putSession(t, s, "s1", "d1", "")
		if resumed, err := s.PutRegistration(t.Context(), registration("d1", "k1", "", t0)); err != nil || resumed != nil {
			t.Errorf("%v %v", resumed, err)
		}
	})
}

func TestSessions(t *testing.T) {
	clock := t0
	opt := options(filepath.Join(t.TempDir(), "portvakt.db"))
	opt.Now = func() time.Time { return clock }
	s := open(t, opt)
	enrol(t, s, "d1")
	enrol(t, s, "d2")
	s1 := putSession(t, s, "s1", "d1", "b1")
	s2 := putSession(t, s, "s2", "d2", "b1")
	s3 := s1
	s3.ID, s3.StartedAt, s3.LastSeen = "s3", t0.Add(time.Hour), t0.Add(time.Hour)
	if err := s.PutSession(t.Context(), s3); err != nil {
		t.Fatal(err)
	}
	s1.EndedAt, s1.EndReason = s3.StartedAt, store.EndSuperseded

	s3.ExpiresAt = t0.Add(2 * time.Hour) // a later fact about an open session
	if err := s.PutSession(t.Context(), s3); err != nil {
		t.Fatal(err)
	}
	list := func(f store.SessionFilter) []store.Session {
		t.Helper()
		ss, err := s.Sessions(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		return ss
	}
	same(t, "all", list(store.SessionFilter{}), []store.Session{s1, s2, s3})
	same(t, "of a device", list(store.SessionFilter{DeviceID: "d1"}), []store.Session{s1, s3})
	same(t, "active", list(store.SessionFilter{Active: true}), []store.Session{s2, s3})
	clock = s3.ExpiresAt
	same(t, "active later", list(store.SessionFilter{Active: true}), []store.Session{s2})
	same(t, "open later", list(store.SessionFilter{Open: true, DeviceID: "d1"}), []store.Session{s3})

	if err := s.TouchSessions(t.Context(), nil, t0); err != nil {
		t.Error(err)
	}
	if err := s.TouchSessions(t.Context(), []string{"s1", "s2", "s3"}, t0.Add(30*time.Minute)); err != nil {
		t.Error(err)
	}
	s2.LastSeen = t0.Add(30 * time.Minute) // s1 has ended, s3 was seen later
	same(t, "touched", list(store.SessionFilter{}), []store.Session{s1, s2, s3})

	end := store.End{SessionID: "s2", Reason: "session_revoked", By: "os:0:root", At: t0.Add(40 * time.Minute)}
	s2.EndedAt, s2.EndReason, s2.EndedBy = end.At, end.Reason, end.By
	for range 2 {
		got, err := s.EndSession(t.Context(), end)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "ended", got, s2)
		end.Reason, end.At = "again", t0.Add(time.Hour)
	}
	if _, err := s.EndSession(t.Context(), store.End{SessionID: "x", Reason: "r", At: t0}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if _, err := s.Session(t.Context(), "x"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%v", err)
	}
	revived := s2
	revived.EndedAt = time.Time{}
	if err := s.PutSession(t.Context(), revived); err == nil {
		t.Error("an ended session was stored as open")
	}
	stolen := s3
	stolen.DeviceID = "d2"
	if err := s.PutSession(t.Context(), stolen); err == nil {
		t.Error("a session moved to another device")
	}
	if err := s.PutSession(t.Context(), store.Session{DeviceID: "d1"}); err == nil {
		t.Error("a session without an id was stored")
	}
	if err := s.PutSession(t.Context(), store.Session{ID: "s9", DeviceID: "x", StartedAt: t0, ExpiresAt: t0}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%v", err)
	}
	same(t, "at the end", list(store.SessionFilter{}), []store.Session{s1, s2, s3})
}

func TestRevoke(t *testing.T) {
	s := fresh(t)
	d := enrol(t, s, "d1")
	enrol(t, s, "d2")
	putSession(t, s, "s1", "d1", "b1")
	putSession(t, s, "s2", "d2", "b1")
	for _, id := range []string{"d1", "d2"} {
		if _, err := s.PutRegistration(t.Context(), registration(id, "k"+id, "b1", t0)); err != nil {
			t.Fatal(err)
		}
	}
	rev := store.Revocation{DeviceID: "d1", Reason: "lost", By: "os:0:root", At: t0.Add(time.Minute)}
	d.RevokedAt, d.RevokedReason, d.RevokedBy = rev.At, rev.Reason, rev.By
	for range 2 {
		got, err := s.RevokeDevice(t.Context(), rev)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "revoked", got, d)
		rev.Reason, rev.At = "again", t0.Add(time.Hour)
	}
	if !d.Revoked() {
		t.Error("not revoked")
	}
	if se := get(t, s, "s1"); se.EndReason != store.EndDeviceRevoked || se.EndedBy != "os:0:root" || !se.EndedAt.Equal(d.RevokedAt) {
		t.Errorf("%+v", se)
	}
	if se := get(t, s, "s2"); !se.EndedAt.IsZero() {
		t.Errorf("%+v", se)
	}
	rs, err := s.Registrations(t.Context())
	if err != nil || len(rs) != 1 || rs[0].DeviceID != "d2" {
		t.Errorf("%v %v", rs, err)
	}
	if _, err := s.PutRegistration(t.Context(), registration("d1", "new", "b1", t0)); !errors.Is(err, store.ErrRevoked) {
		t.Errorf("%v", err)
	}
	if err := s.PutSession(t.Context(), store.Session{ID: "s9", DeviceID: "d1", StartedAt: t0, ExpiresAt: t0}); !errors.Is(err, store.ErrRevoked) {
		t.Errorf("%v", err)
	}
	invite(t, s, "second chance")
	again := redeem("second chance", "d3")
	again.Device.KeyHash = d.KeyHash
	if _, err := s.RedeemInvite(t.Context(), again); !errors.Is(err, store.ErrKeyTaken) {
		t.Errorf("the key of a revoked device: %v", err)
	}
	again.Device.KeyHash = hash("fresh key")
	d3, err := s.RedeemInvite(t.Context(), again)
	if err != nil || d3.Addresses == d.Addresses {
		t.Errorf("%v %v", d3, err)
	}
	if _, err := s.RevokeDevice(t.Context(), store.Revocation{DeviceID: "x", At: t0}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestTouchDevice(t *testing.T) {
	s := fresh(t)
	enrol(t, s, "d1")
	for _, c := range []struct{ touch, want time.Duration }{{time.Hour, time.Hour}, {time.Minute, time.Hour}} {
		if err := s.TouchDevice(t.Context(), "d1", t0.Add(c.touch)); err != nil {
			t.Fatal(err)
		}
		if d, err := s.Device(t.Context(), "d1"); err != nil || !d.LastSeen.Equal(t0.Add(c.want)) {
			t.Errorf("%v %v", d.LastSeen, err)
		}
	}
	if err := s.TouchDevice(t.Context(), "x", t0); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// Connects, logins and a revocation of one device race over two handles. When
// the revocation has returned, nothing of the device is left or comes back.
func TestRevokeWinsOverWhatRacesIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portvakt.db")
	stores := []*store.Store{open(t, options(path)), open(t, options(path))}
	enrol(t, stores[0], "d1")
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			s := stores[i%2]
			var err error
			switch i % 3 {
			case 0:
				_, err = s.PutRegistration(t.Context(), registration("d1", fmt.Sprint("k", i), "b1", t0))
			case 1:
				err = s.PutSession(t.Context(), store.Session{ID: fmt.Sprint("s", i), DeviceID: "d1", BootID: "b1", StartedAt: t0, ExpiresAt: t0.Add(time.Hour)})
			case 2:
				if i == 14 {
					_, err = s.RevokeDevice(t.Context(), store.Revocation{DeviceID: "d1", Reason: "lost", By: "x", At: t0})
				}
			}
			if err != nil && !errors.Is(err, store.ErrRevoked) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if rs, err := stores[0].Registrations(t.Context()); err != nil || len(rs) != 0 {
		t.Errorf("%v %v", rs, err)
	}
	if ss, err := stores[1].Sessions(t.Context(), store.SessionFilter{Open: true}); err != nil || len(ss) != 0 {
		t.Errorf("%v %v", ss, err)
	}
}

func TestCheckConsistencyFindsWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		harm []string
		want string
	}{
		"registration of a revoked device": {[]string{`UPDATE devices SET revoked_at = 1 WHERE id = 'd1'`, `UPDATE sessions SET ended_at = 1, end_reason = 'x'`}, "a registration is of a revoked"},
		"session of a revoked device":      {[]string{`UPDATE devices SET revoked_at = 1 WHERE id = 'd1'`, `DELETE FROM registrations`}, "an open session is of a revoked"},
		"two open sessions": {[]string{
			`DROP INDEX sessions_one_open`,
			`INSERT INTO sessions SELECT 'copy', device_id, os_user, subject, boot_id, started_at, expires_at, last_seen, ended_at, end_reason, ended_by, sid FROM sessions WHERE id = 's1'`,
		}, "two open sessions"},
		"a foreign address":         {[]string{`UPDATE addresses SET owner = 'other' WHERE owner = 'd1'`}, "not its own"},
		"an address below the pool": {[]string{`UPDATE addresses SET number = 2 WHERE owner = 'crm'`}, "below the first"},
		"a device without a code":   {[]string{`DELETE FROM invites WHERE device_id = 'd1'`}, "without a code"},
		"a code without a device":   {[]string{`PRAGMA foreign_keys = 0`, `UPDATE invites SET device_id = 'gone' WHERE device_id = 'd1'`}, "a used code has no device"},
		"an end without a reason":   {[]string{`UPDATE sessions SET ended_at = 1`}, "has no reason"},
		"a damaged key":             {[]string{`UPDATE registrations SET psk_sealed = x'00'`}, "opening the preshared key"},
		"a damaged subject":         {[]string{`UPDATE sessions SET subject = '{'`}, "the subject of session"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "portvakt.db")
			s, err := store.Open(t.Context(), options(path))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			enrol(t, s, "d1")
			enrol(t, s, "d2")
			if _, err := s.AppAddresses(t.Context(), []string{"crm"}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.PutRegistration(t.Context(), registration("d1", "k1", "b1", t0)); err != nil {
				t.Fatal(err)
			}
			putSession(t, s, "s1", "d1", "b1")
			if err := s.CheckConsistency(t.Context()); err != nil {
				t.Fatal(err)
			}
			raw(t, path, c.harm...)
			if err := s.CheckConsistency(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v does not say %q", err, c.want)
			}
		})
	}
}

func TestAContextThatEndsLeavesTheStoreUsable(t *testing.T) {
	s := fresh(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.TouchDevice(ctx, "d1", t0); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	enrol(t, s, "d1")
}
