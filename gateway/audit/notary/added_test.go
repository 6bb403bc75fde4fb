package notary_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit/notary"
)

// Behind the last record of a closed file nothing may stand: it is read as a
// record by whoever reads JSON Lines more leniently.
func TestNothingIsAddedToAClosedFile(t *testing.T) {
	for _, more := range []string{`{"seq":301,"time":"2026-03-04T08:00:00Z","kind":"decision","decision":"d-forged","allow":true}`, "x"} {
		o := newOffice(t)
		o.write(300)
		o.endDay(1)
		o.write(20)
		o.mustSign()
		f, err := os.OpenFile(o.day(1), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteString(more)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		_, err = notary.Verify(o.log, o.tree, o.verifier)
		if !errors.Is(err, notary.ErrChanged) || !strings.Contains(fmt.Sprint(err), o.day(1)) {
			t.Errorf("behind it stands %q: %v", more, err)
		}
		if out, err := o.python(); err == nil {
			t.Errorf("the documented verifier says %s", out)
		}
	}
}

// A line longer than any record is named, too.
func TestALineThatIsTooLong(t *testing.T) {
	o := newOffice(t)
	o.write(300)
	o.mustSign()
	o.change(func(l []string) []string { l[99] = strings.Repeat("x", 18<<20) + "\n"; return l })
	_, err := notary.Verify(o.log, o.tree, o.verifier)
	var bad *notary.BadRecord
	if !errors.As(err, &bad) || bad.Seq != 100 {
		t.Errorf("%v", err)
	}
}
