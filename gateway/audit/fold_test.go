package audit

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// told is what a log says was refused, by kind, device, app and reason.
type told map[foldKey]uint64

func refusalsTold(t *testing.T, path string) (sums told, folded int) {
	t.Helper()
	sums = told{}
	err := Scan(path, func(_ []byte, r *Record) bool {
		key, n := foldKey{r.Kind, r.Device, r.App, r.Reason}, uint64(1)
		switch r.Kind {
		case KindFolded:
			folded++
			var err error
			if n, err = strconv.ParseUint(r.Detail["count"], 10, 64); err != nil || n == 0 {
				t.Errorf("count %q", r.Detail["count"])
			}
			first, err1 := time.Parse(time.RFC3339Nano, r.Detail["first"])
			last, err2 := time.Parse(time.RFC3339Nano, r.Detail["last"])
			if err1 != nil || err2 != nil || last.Before(first) || r.Time.Before(last) {
				t.Errorf("from %v to %v, written %v", first, last, r.Time)
			}
			key.kind = Kind(r.Detail["kind"])
		case KindDecision, KindFlowOpen:
		default:
			return true
		}
		sums[key] += n
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums, folded
}

// What the log tells of a flood adds up to what was refused: over a burst, a
// full disk, restarts, and several devices, apps and reasons at once.
func TestFloodsAddUp(t *testing.T) {
	dir := t.TempDir()
	var nanos atomic.Int64
	now := func() time.Time { return time.Unix(1_770_000_000, nanos.Load()).UTC() }
	want, folded := told{}, 0
	var mu sync.Mutex
	for round := range 3 {
		l, err := Open(Options{Dir: dir, Now: now})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- l.Run(ctx) }()
		full := atomic.Bool{}
		l.mu.Lock()
		write := l.write
		l.write = func(b []byte) (int, error) {
			if full.Load() {
				return 0, syscall.ENOSPC
			}
			return write(b)
		}
		l.mu.Unlock()
		var wg sync.WaitGroup
		for device := range 8 {
			source := NewRefusals(l, now)
			for range 2 { // a device asks over several connections
				wg.Go(func() {
					for i := range 2000 {
						rec := Record{
							Kind: KindDecision, Decision: fmt.Sprintf("d-%d", i), Device: fmt.Sprintf("dev-%d", device),
							App: fmt.Sprintf("app-%d", i%3), Reason: []string{"posture_failed", "login_required"}[i%2],
							Path: strings.Repeat("p", 100),
						}
						if i%5 == 0 {
							rec.Kind = KindFlowOpen
						}
						mu.Lock()
						want[foldKey{rec.Kind, rec.Device, rec.App, rec.Reason}]++
						mu.Unlock()
						source.Note(rec)
						if i%100 == 0 {
							nanos.Add(int64(20 * time.Millisecond))
						}
						full.Store(round == 1 && i > 500 && i < 1500)
					}
				})
			}
		}
		wg.Wait()
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil || l.Lost() != 0 {
			t.Errorf("%d lost, %v", l.Lost(), err)
		}
		var got told
		got, folded = refusalsTold(t, l.path)
		for key, n := range want {
			if got[key] != n {
				t.Errorf("round %d: %+v: the log tells of %d, %d were refused", round, key, got[key], n)
			}
		}
		if len(got) != len(want) {
			t.Errorf("round %d: the log tells of %d forms, there were %d", round, len(got), len(want))
		}
	}
	if folded == 0 {
		t.Error("nothing was folded")
	}
}

func TestAFoldSaysWhatItIsOf(t *testing.T) {
	l := openFault(t)
	at := time.Date(2026, 3, 4, 8, 0, 0, 0, time.UTC)
	l.now = func() time.Time { return at }
	source := NewRefusals(l, func() time.Time { return time.Unix(0, 0) })
	no := false
	for i := range refusalsBurst + 3 {
		source.Note(Record{
			Kind: KindDecision, Allow: &no, Decision: fmt.Sprintf("d-%d", i), Device: "dev", App: "crm", Reason: "posture_failed",
			Subject: "iss#anna", Session: fmt.Sprintf("s-%d", i), Remote: "192.0.2.1",
		})
		at = at.Add(time.Millisecond)
	}
	at = at.Add(foldFor - 4*time.Millisecond) // the first came 3 ms ago
	if l.writeFolds(false) {
		t.Error("written before it was due")
	}
	l.drain()
	if sums, folded := refusalsTold(t, l.path); folded != 0 || len(sums) != 1 {
		t.Fatalf("%d folded, %v", folded, sums)
	}
	at = at.Add(time.Millisecond)
	if !l.writeFolds(false) || len(l.folders) != 0 || source.folds != nil {
		t.Error("something is left")
	}
	l.drain()
	line, _, err := l.Find(strconv.Itoa(refusalsBurst + 1))
	want := `"kind":"folded","allow":false,"reason":"posture_failed","app":"crm","subject":"iss#anna","device":"dev","remote":"192.0.2.1",` +
		`"detail":{"count":"3","first":"2026-03-04T08:00:00.5Z","first_decision":"d-500","kind":"decision","last":"2026-03-04T08:00:00.502Z","last_decision":"d-502"}}`
	if err != nil || !strings.HasSuffix(string(line), want) {
		t.Errorf("%s\nwant %s, %v", line, want, err)
	}
	// A block page may show any of these IDs.
	for id, found := range map[string]bool{"d-0": true, "d-500": true, "d-501": false, "d-502": true} {
		_, r, err := l.Find(id)
		switch {
		case found != (err == nil):
			t.Errorf("%s: %v", id, err)
		case !found && !strings.Contains(err.Error(), "folded"):
			t.Errorf("%s: %v does not say where it may be", id, err)
		case found && !r.Names(id):
			t.Errorf("%s: found %+v", id, r)
		}
	}
}

// A device may ask about as many names as it can think of.
func TestFoldsOfOneSourceAreBounded(t *testing.T) {
	l := openFault(t)
	source := NewRefusals(l, func() time.Time { return time.Unix(0, 0) })
	const names = 5000
	for i := range refusalsBurst + names {
		source.Note(Record{Kind: KindWhy, Device: "dev", App: fmt.Sprintf("app-%d", i), Reason: "unknown_app"})
	}
	if n := len(source.folds); n != maxFolds+1 {
		t.Errorf("%d folds", n)
	}
	l.finish()
	var sum uint64
	others := 0
	if err := Scan(l.path, func(_ []byte, r *Record) bool {
		if r.Kind == KindFolded {
			n, _ := strconv.ParseUint(r.Detail["count"], 10, 64)
			sum += n
			if r.Detail["of"] == "several" && r.App == "" && r.Device == "" && r.Reason == "unknown_app" {
				others++
			}
		}
		return true
	}); err != nil || sum != names || others != 1 {
		t.Errorf("%d counted, %d for the rest, %v", sum, others, err)
	}
}

// The ends of everything that was open wait as long as they must, while what
// has a limit is refused room; and what an administrator does has room beside
// a flood.
func TestEndsAreNeverLost(t *testing.T) {
	l := openFault(t)
	write := l.write
	l.write = func([]byte) (int, error) { return 0, syscall.ENOSPC }
	source := NewRefusals(l, func() time.Time { return time.Unix(0, 0) })
	others := make([]*Refusals, 20)
	for i := range others {
		others[i] = NewRefusals(l, func() time.Time { return time.Unix(0, 0) })
	}
	input := []byte(`{"x":"` + strings.Repeat("x", 8<<10) + `"}`)
	const open = 10_000
	for i := range open {
		source.Note(Record{Kind: KindDecision, Device: "dev-0", Reason: "locked_down"})
		others[i%len(others)].Note(Record{Kind: KindDecision, Device: "dev-1", Reason: "locked_down"})
		l.NoteEnd(Record{Kind: KindFlowCut, Flow: strconv.Itoa(i), Input: input, InputCompact: true})
		l.NoteEnd(Record{Kind: KindFlowClose, Flow: strconv.Itoa(i)})
	}
	l.Note(Record{Kind: KindRevoke})
	if l.Lost() != 0 {
		t.Fatalf("%d lost", l.Lost())
	}
	if most := maxNotesBytes + open*1024; l.queue.bytes > most {
		t.Errorf("%d bytes wait, more than %d", l.queue.bytes, most)
	}
	l.write = write
	l.finish()
	count, flows, cut := map[Kind]int{}, map[string]bool{}, 0
	if err := Scan(l.path, func(_ []byte, r *Record) bool {
		count[r.Kind]++
		if r.Kind == KindFlowCut {
			flows[r.Flow] = true
			if strings.Contains(string(r.Input), `"cut"`) {
				cut++
			}
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if len(flows) != open || count[KindFlowCut] != open || count[KindFlowClose] != open || count[KindRevoke] != 1 || count[KindLost] != 0 {
		t.Errorf("%v, %d flows", count, len(flows))
	}
	if cut == 0 || cut == open {
		t.Errorf("%d Inputs were left out", cut)
	}
	sums, _ := refusalsTold(t, l.path)
	for i := range 2 {
		if n := sums[foldKey{KindDecision, fmt.Sprintf("dev-%d", i), "", "locked_down"}]; n != open {
			t.Errorf("the log tells of %d refusals of device %d", n, i)
		}
	}
	if !l.queue.empty() || l.queue.bytes != 0 || l.queue.limited != 0 || l.queue.room != 0 {
		t.Errorf("left: %+v", l.queue)
	}
}

func TestCloseSaysWhatWasFoldedInVain(t *testing.T) {
	l := openFault(t)
	l.write = func([]byte) (int, error) { return 0, syscall.ENOSPC }
	for range 5 { // sources whose burst fills the room for refusals
		source := NewRefusals(l, l.now)
		for range refusalsBurst {
			source.Note(Record{Kind: KindDecision})
		}
	}
	if err := l.Close(); err == nil || !strings.Contains(err.Error(), "refusals of 1 sources") {
		t.Errorf("%v", err)
	}
}
