package proxy

import (
	"net/url"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// What an app that normalises Unicode (NFKC) would make a delimiter, an escape
// or a dot segment of is refused, whichever of all characters it is.
func TestLookalikesAreAllThereAre(t *testing.T) {
	seen := 0
	for r := rune(utf8.RuneSelf); r <= unicode.MaxRune; r++ {
		folded := norm.NFKC.String(string(r))
		bad := strings.ContainsAny(folded, "/\\;%") || strings.Trim(folded, ".") == ""
		if known := strings.ContainsRune(lookalikes, r) && utf8.ValidRune(r); known != bad {
			t.Errorf("%U is %q to an app that normalises, on the list: %v", r, folded, known)
		} else if known {
			seen++
		}
		if !bad && folded != " " {
			continue
		}
		if got, err := canonical("/.."+url.PathEscape(string(r))+"/b", kept{}); err == nil {
			t.Errorf("%U, %q to an app that normalises, was taken as %+v", r, folded, got)
		}
	}
	if all := utf8.RuneCountInString(lookalikes); seen != all {
		t.Errorf("%d of %d lookalikes are any", seen, all)
	}
}
