package notary_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit/notary"
)

// other is a record with that number that is not the one [office.write] writes.
func other(n int) string { return strings.Replace(line(n), "d-", "e-", 1) + "\n" }

// Somebody changes the log while nobody looks, and it grows on. A record that
// has the signed number is not the signed one, however many follow it.
func TestTheAlarmStaysWhenTheLogGrowsOn(t *testing.T) {
	const signed = 600
	regrow := func(l []string, first int) []string {
		l = l[:100]
		for len(l) < signed-first+1 {
			l = append(l, other(first+len(l)))
		}
		return l
	}
	for name, change := range map[string]func(l []string, first int) []string{
		"cut and grown again": regrow,
		"cut and grown again up to the last signed record": func(l []string, first int) []string {
			return append(regrow(l, first)[:signed-first], line(signed)+"\n")
		},
		"one record": func(l []string, first int) []string { l[9] = other(first + 9); return l },
		"the last":   func(l []string, first int) []string { l[signed-first] = other(signed); return l },
		"none":       func([]string, int) []string { return nil },
	} {
		for _, first := range []int{1, 301} {
			o := newOffice(t)
			if first > 1 {
				o.write(first - 1)
				o.endDay(1)
			}
			o.write(signed - o.records)
			o.mustSign()
			before := o.checkpoint()
			o.change(func(l []string) []string { return change(l, first) })
			for range 3 {
				if err := o.sign(); !errors.Is(err, notary.ErrChanged) {
					t.Errorf("%s, from %d: %v", name, first, err)
				}
				o.write(4)
			}
			if !bytes.Equal(before, o.checkpoint()) {
				t.Errorf("%s, from %d: it was signed", name, first)
			}
		}
	}
}
