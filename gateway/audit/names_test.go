package audit

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// The names that the proxy's pages are tried with stay text in the log too.
func TestNamesStayInTheirLine(t *testing.T) {
	data, err := os.ReadFile("../proxy/testdata/names.txt")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(data), "\n\n")
	for i, text := range strings.Split(strings.TrimSpace(list), "\n") {
		name, err := strconv.Unquote(`"` + text + `"`)
		if err != nil {
			t.Fatalf("name %d: %v", i, err)
		}
		// line checks that nothing of it stands unescaped.
		if _, got := line(t, all(name)); got.Subject != strings.ToValidUTF8(name, "\uFFFD") {
			t.Errorf("%s came back as %q", text, got.Subject)
		}
	}
}
