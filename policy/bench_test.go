package policy_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/portvakt/portvakt/policy"
)

func manyApps(n int) map[string]string {
	files := map[string]string{}
	for i := range n {
		name := "crm"
		if i > 0 {
			name = fmt.Sprintf("app%d", i)
		}
		files[name+".yaml"] = fmt.Sprintf(`
name: %[1]s
protocol: http
hosts: [%[1]s.example.com]
upstream: http://10.0.0.5
access:
  - groups: [finance]
    methods: [GET]
  - groups: [sales, support]
    posture: {disk_encryption: pass, host_firewall: pass}
    countries: [SE, NO, DK, FI]
    hours: {days: [mon, tue, wed, thu, fri], from: 06:00, to: 20:00, zone: Europe/Stockholm}
    methods: [GET, POST]
    paths: [/, /customers/*, /static/**, /v1/*/notes]
`, name)
	}
	return files
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{1, 30, 300} {
		b.Run(fmt.Sprintf("apps=%d", n), func(b *testing.B) {
			e := engine(b, manyApps(n))
			benchmarkDecide(b, e)
		})
	}
	b.Run("apps=30,custom=5", func(b *testing.B) {
		files := manyApps(30)
		for i := range 5 {
			files[fmt.Sprintf("m%d.rego", i)] = fmt.Sprintf(`package portvakt.custom.m%d
absent := {"location.country": "deny"}
deny contains {"message": "no"} if { input.app.name == "crm"; input.location.country == "X%d" }
`, i, i)
		}
		benchmarkDecide(b, engine(b, files))
	})
}

func benchmarkDecide(b *testing.B, e *policy.Engine) {
	in := baseInput()
	change(b, in, "path=/customers/7")
	if d := e.Decide(context.Background(), in); !d.Allow {
		b.Fatalf("denied: %s %v", d.Reason, d.Fact)
	}
	b.ReportAllocs()
	for b.Loop() {
		e.Decide(context.Background(), in)
	}
}
