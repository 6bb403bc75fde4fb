package gateway

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// docs/operations.md names every metric, and none that is not.
func TestMetricsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(portvakt_\\w+)").FindAllStringSubmatch(string(text), -1) {
		documented = append(documented, m[1])
	}
	ch := make(chan *prometheus.Desc, 100)
	(&gateway{}).metrics().Describe(ch)
	close(ch)
	registered := []string{"portvakt_audit_sink_sent_records", "portvakt_audit_sink_missed_records"} // one for each sink, of which there is none here
	for d := range ch {
		registered = append(registered, regexp.MustCompile(`fqName: "(\w+)"`).FindStringSubmatch(d.String())[1])
	}
	slices.Sort(documented)
	slices.Sort(registered)
	if !slices.Equal(documented, registered) {
		t.Errorf("documented\n%q, registered\n%q", documented, registered)
	}
}
