package main

import "testing"

// What people have is the ID on their block page; of a flood it may be the one
// in a fold.
func TestWhichRecordIsCalled(t *testing.T) {
	const fold = `{"seq":7,"time":"2026-03-04T08:00:00Z","kind":"folded","detail":{"count":"3","first_decision":"d-1","kind":"decision","last_decision":"d-3"}}`
	for _, c := range []struct {
		id, line string
		want     bool
	}{
		{"d-1", `{"seq":6,"time":"2026-03-04T08:00:00Z","kind":"decision","decision":"d-1"}`, true},
		{"d-1", `{"seq":6,"time":"2026-03-04T08:00:00Z","kind":"decision","decision":"d-2","path":"/\"decision\":\"d-1\""}`, false},
		{"d-1", `{"seq":6,"time":"2026-03-04T08:00:00Z","kind":"admin","detail":{"first_decision":"d-1"}}`, false},
		{"d-1", fold, true},
		{"d-2", fold, false},
		{"d-3", fold, true},
		{"3", fold, false},
		{"7", fold, true},
		{"", fold, false},
	} {
		if got := called(c.id)([]byte(c.line)); got != c.want {
			t.Errorf("%q of %s: %t", c.id, c.line, got)
		}
	}
}
