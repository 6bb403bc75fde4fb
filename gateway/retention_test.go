package gateway

import (
	"maps"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/audit/people"
)

// Facts hold every other field, so they go with the first of them.
func TestFactsExpireWithWhatTheyHold(t *testing.T) {
	day := 24 * time.Hour
	for _, c := range []struct {
		fields RetentionFields
		want   map[people.Field]time.Duration
	}{
		{RetentionFields{}, map[people.Field]time.Duration{}},
		{RetentionFields{Facts: Days(day)}, map[people.Field]time.Duration{people.Facts: day}},
		{RetentionFields{Address: Days(2 * day), Request: Days(3 * day)}, map[people.Field]time.Duration{people.Address: 2 * day, people.Request: 3 * day, people.Facts: 2 * day}},
		{RetentionFields{Person: Days(2 * day), Facts: Days(day)}, map[people.Field]time.Duration{people.Person: 2 * day, people.Facts: day}},
	} {
		if got := c.fields.effective(); !maps.Equal(got, c.want) {
			t.Errorf("%+v: %v, want %v", c.fields, got, c.want)
		}
	}
}
