package audit_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/people"
	"github.com/portvakt/portvakt/policy"
)

// sealing opens a log whose personal data is sealed.
func sealing(t *testing.T, dir string, now func() time.Time) *audit.Log {
	t.Helper()
	keys, err := people.Open(filepath.Join(dir, "people"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := audit.Open(audit.Options{Dir: filepath.Join(dir, "audit"), People: keys, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// everyPersonal is a record of each sort that says something about somebody.
func everyPersonal() []audit.Record {
	fact := &policy.Fact{Name: "address", Value: "secret-fact", Wanted: "another"}
	return []audit.Record{
		{Kind: audit.KindDecision, Subject: "iss#secret-anna", Device: "dev-1", Remote: "192.0.2.66", Fact: fact, Path: "/secret-path", RequestHash: "secret-hash", Input: json.RawMessage(`{"subject":{"name":"secret-name"}}`)},
		{Kind: audit.KindDecision, Device: "dev-1", Reason: string(policy.ReasonPolicyDenied), Message: "secret-anna is on leave.", Remedy: "Ask secret-ben."},
		{Kind: audit.KindLogin, Subject: "iss#secret-anna", Device: "dev-1", Remote: "192.0.2.66", Detail: map[string]string{"name": "secret-name"}},
		{Kind: audit.KindLocation, Device: "dev-1", Remote: "192.0.2.66", Detail: map[string]string{"before_address": "secret-place"}},
		{Kind: audit.KindDecision, Device: "dev-1", Path: "/secret-query", RequestHash: "secret-hash"},
		{Kind: audit.KindEnrollRefused, Remote: "192.0.2.66", Reason: "code_used"},
		{Kind: audit.KindLockdown, Actor: "os:0:root", Detail: map[string]string{"scope": "subject", "value": "iss#secret-anna"}},
		{Kind: audit.KindLockdown, Actor: "os:0:root", Detail: map[string]string{"scope": "app", "value": "crm"}},
		{Kind: audit.KindStop},
		{Kind: audit.KindInvite, Device: "dev-1", Actor: "os:0:root", Detail: map[string]string{"name": "secret-laptop"}},
	}
}

func TestPersonalDataIsSealedAndRevealed(t *testing.T) {
	at := time.Date(2026, 3, 4, 8, 0, 0, 5, time.UTC)
	dir := t.TempDir()
	l := sealing(t, dir, func() time.Time { return at })
	var want []audit.Record
	for i, r := range everyPersonal() {
		if i%2 == 0 {
			if err := l.Append(&r); err != nil {
				t.Fatal(err)
			}
		} else {
			l.Note(r)
		}
		r.Seq, r.Time = uint64(i)+1, at
		want = append(want, r)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(l.Path())
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"secret", "192.0.2.66"} {
		if strings.Contains(string(b), secret) {
			t.Errorf("the file holds %q:\n%s", secret, b)
		}
	}
	for _, open := range []string{`"device":"dev-1"`, `"reason":"code_used"`, `"value":"crm"`} {
		if !strings.Contains(string(b), open) {
			t.Errorf("the file lacks %s", open)
		}
	}
	l = sealing(t, dir, nil) // its keys are stored
	persons := map[string]int{}
	var got []audit.Record
	err = audit.Scan(l.Path(), func(line []byte, r *audit.Record) bool {
		shown, err := l.Reveal(line, r)
		var again audit.Record
		if err != nil || json.Unmarshal(shown, &again) != nil || cmp.Diff(*r, again) != "" {
			t.Errorf("%v: %s", err, shown)
		}
		persons[r.Person]++
		again.Person = ""
		got = append(got, again)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if len(persons) != 4 || persons[""] != 2 { // anna, her laptop before the login, strangers; and nobody
		t.Errorf("whose they are: %v", persons)
	}
}

func TestErasureLeavesTheLogAsItIs(t *testing.T) {
	l := sealing(t, t.TempDir(), nil)
	for _, who := range []string{"iss#anna", "iss#ben"} {
		if err := l.Append(&audit.Record{Kind: audit.KindDecision, Decision: who, Subject: who, App: "crm", RequestHash: "5da64cfa98a7", Input: json.RawMessage(`{}`)}); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.ReadFile(l.Path())
	if err != nil {
		t.Fatal(err)
	}
	id, err := l.PersonOf("iss#anna", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Erase(id, "os:0:root", map[string]string{"why": "asked"}); err != nil {
		t.Fatal(err)
	}
	if err := l.Erase(id, "os:0:root", nil); !errors.Is(err, audit.ErrNobody) {
		t.Errorf("twice: %v", err)
	}
	if _, err := l.PersonOf("iss#anna", ""); !errors.Is(err, audit.ErrNobody) || l.Holds(id) {
		t.Errorf("still known: %v", err)
	}
	after, err := os.ReadFile(l.Path())
	if err != nil || !strings.HasPrefix(string(after), string(before)) {
		t.Errorf("the log was changed: %v", err)
	}
	line, r, err := l.Find("iss#anna")
	if err != nil || !r.Erased || r.Subject != "" || r.RequestHash != "" || r.App != "crm" || r.Person != id || !strings.HasSuffix(string(line), `"person":"`+id+`","erased":true}`) {
		t.Errorf("%v %s", err, line)
	}
	if _, r, err := l.Find("iss#ben"); err != nil || r.Erased || r.Subject != "iss#ben" || r.RequestHash != "5da64cfa98a7" || string(r.Input) != "{}" {
		t.Errorf("another's: %v %+v", err, r)
	}
	if _, r, err := l.Find("3"); err != nil || r.Kind != audit.KindErase || r.Person != id || r.Actor != "os:0:root" {
		t.Errorf("its record: %v %+v", err, r)
	}
}

// Without the record of it nothing is erased; without its key nothing is
// recorded.
func TestErasureNeedsItsRecordAndRecordsNeedTheirKey(t *testing.T) {
	dir := t.TempDir()
	l := sealing(t, dir, nil)
	if err := l.Append(&audit.Record{Kind: audit.KindDecision, Subject: "iss#anna"}); err != nil {
		t.Fatal(err)
	}
	keys, away := filepath.Join(dir, "people"), filepath.Join(dir, "away")
	if err := os.Rename(keys, away); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(&audit.Record{Kind: audit.KindDecision, Subject: "iss#ben"}); err == nil {
		t.Error("recorded under a key that is nowhere")
	}
	if l.Healthy() == nil {
		t.Error("healthy")
	}
	if err := os.Rename(away, keys); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(&audit.Record{Kind: audit.KindDecision, Subject: "iss#ben"}); err != nil {
		t.Errorf("when it can be stored again: %v", err)
	}
	id, err := l.PersonOf("iss#anna", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Erase(id, "os:0:root", nil); err == nil || !l.Holds(id) {
		t.Errorf("erased without a record: %v", err)
	}
}

func TestRetentionOfPersonalData(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		l := sealing(t, dir, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Retain(ctx, audit.Retention{Personal: 48 * time.Hour}) }()
		for range 5 {
			if err := l.Append(&audit.Record{Kind: audit.KindDecision, Subject: "iss#anna"}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(24 * time.Hour)
		}
		synctest.Wait()
		erased, open := 0, 0
		if err := audit.Scan(l.Path(), func(line []byte, r *audit.Record) bool {
			if _, err := l.Reveal(line, r); err != nil {
				t.Error(err)
			}
			switch {
			case r.Kind == audit.KindErase && r.Actor == "retention" && r.Detail["days"] != "":
			case r.Erased:
				erased++
			case r.Subject == "iss#anna":
				open++
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if erased != 3 || open != 2 { // the third day ended 48 hours ago
			t.Errorf("%d are erased, %d can be opened", erased, open)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A field expires alone: it is gone from every line of those days, and every
// reader is told so, while the rest can be opened and no line is another.
func TestFieldsExpireAlone(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		l := sealing(t, dir, nil)
		record := func() {
			t.Helper()
			for _, r := range everyPersonal() {
				if err := l.Append(&r); err != nil {
					t.Fatal(err)
				}
			}
		}
		record()
		before, err := os.ReadFile(l.Path())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		days := func(n time.Duration) time.Duration { return n * 24 * time.Hour }
		go func() {
			done <- l.Retain(ctx, audit.Retention{Personal: days(9), Fields: map[people.Field]time.Duration{
				people.Address: days(1), people.Facts: days(1), people.Request: days(3), people.Device: days(8), people.Person: days(7),
			}})
		}()
		n := len(everyPersonal())
		for _, c := range []struct {
			wait    time.Duration
			expired []string // of the first record
			record  audit.Record
		}{
			{0, nil, everyPersonal()[0]},
			{days(2), []string{"address", "facts"}, audit.Record{Subject: "iss#secret-anna", Path: "/secret-path", RequestHash: "secret-hash"}},
			{days(2), []string{"address", "facts", "request"}, audit.Record{Subject: "iss#secret-anna"}},
			{days(4), []string{"address", "facts", "person", "request"}, audit.Record{}},
			{days(2), nil, audit.Record{}},
		} {
			time.Sleep(c.wait)
			synctest.Wait()
			seen := 0
			err := audit.Scan(l.Path(), func(line []byte, r *audit.Record) bool {
				shown, err := l.Reveal(line, r)
				if err != nil {
					t.Fatal(err)
				}
				if seen++; seen > n {
					return true
				}
				if seen == 1 {
					want := c.record
					if d := cmp.Diff([]any{want.Subject, want.Remote, want.Fact, want.Path, want.RequestHash, string(want.Input)}, []any{r.Subject, r.Remote, r.Fact, r.Path, r.RequestHash, string(r.Input)}); d != "" {
						t.Errorf("after %s: %s", c.wait, d)
					}
					if d := cmp.Diff(c.expired, r.Expired); d != "" || r.Erased != (c.expired == nil && c.wait > 0) {
						t.Errorf("after %s: %s %s", c.wait, d, shown)
					}
				}
				for field, secret := range map[string]string{"address": "secret-place", "device": "secret-laptop", "person": "secret-name", "facts": "secret-ben"} {
					if strings.Contains(string(shown), secret) && (r.Erased || slices.Contains(r.Expired, field)) {
						t.Errorf("%s, which expired, is shown: %s", field, shown)
					}
				}
				return true
			})
			if err != nil || seen < n {
				t.Errorf("%d records, %v", seen, err)
			}
		}
		fields := map[string]int{}
		err = audit.Scan(l.Path(), func(_ []byte, r *audit.Record) bool {
			if r.Kind == audit.KindErase && r.Actor == "retention" {
				fields[r.Detail["field"]]++
			}
			return true
		})
		if err != nil {
			t.Error(err)
		}
		for _, name := range append(people.Names(), "") {
			if fields[name] == 0 {
				t.Errorf("the expiry of %q is not recorded: %v", name, fields)
			}
		}
		after, err := os.ReadFile(filepath.Join(dir, "audit", "audit-00000000000000000001.jsonl"))
		if err != nil { // not rotated: nothing runs the log here
			after, err = os.ReadFile(l.Path())
		}
		if err != nil || !strings.HasPrefix(string(after), string(before)) {
			t.Errorf("the log was changed: %v", err)
		}
		cancel()
		if err := errors.Join(<-done, l.Close()); err != nil {
			t.Error(err)
		}
	})
}

// What was sealed before fields had keys of their own is opened as it was.
func TestOlderLinesAreRevealed(t *testing.T) {
	dir := t.TempDir()
	at := time.Date(2026, 3, 4, 8, 0, 0, 0, time.UTC)
	const id = "p-5f0c91d2aa07be31"
	day, person := bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{9}, 32)
	for name, text := range map[string]string{
		"day-2026-03-04.key": base64.StdEncoding.EncodeToString(day) + "\n",
		id + ".key":          `{"name":"iss#anna","key":"` + base64.StdEncoding.EncodeToString(person) + `"}`,
	} {
		if err := os.MkdirAll(filepath.Join(dir, "people"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "people", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mac := hmac.New(sha256.New, day)
	mac.Write(append([]byte("portvakt personal data\x00"), person...))
	block, err := aes.NewCipher(mac.Sum(nil))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := []byte("twelve bytes")
	sealed := aead.Seal(nonce, nonce, []byte(`{ "subject":"iss#anna","request_hash":"5da6","remote":"192.0.2.1","input":{"a":1}}`), []byte(id+"/2026-03-04"))
	line := `{"seq":1,"time":"2026-03-04T08:00:00Z","kind":"decision","path":"/p","person":"` + id + `","sealed":"` + base64.StdEncoding.EncodeToString(sealed) + `"}`
	if err := os.MkdirAll(filepath.Join(dir, "audit"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "audit", audit.FileName), []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := sealing(t, dir, func() time.Time { return at })
	if err := l.Append(&audit.Record{Kind: audit.KindDecision, Subject: "iss#anna", Remote: "192.0.2.1", Path: "/p"}); err != nil {
		t.Fatal(err)
	}
	for _, seq := range []string{"1", "2"} {
		shown, r, err := l.Find(seq)
		if err != nil || r.Subject != "iss#anna" || r.Remote != "192.0.2.1" || r.Path != "/p" || r.Erased || r.Expired != nil || r.Person != id {
			t.Errorf("record %s: %v %s", seq, err, shown)
		}
	}
	if _, r, err := l.Find("1"); err != nil || r.RequestHash != "5da6" || string(r.Input) != `{"a":1}` {
		t.Errorf("%v %+v", err, r)
	}
}
