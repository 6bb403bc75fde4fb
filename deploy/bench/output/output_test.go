package output

import (
	"fmt"
	"testing"
)

func TestWrk(t *testing.T) {
	const page = "  2 threads and 64 connections\n%s  300 requests in 1.00s, 60KB read\n%sRequests/sec:  29870.12\nTransfer/sec:  6MB\n"
	if rate, err := Wrk(fmt.Sprintf(page, "", "")); err != nil || rate != 29870.12 {
		t.Errorf("%v %v", rate, err)
	}
	for _, bad := range []string{
		"", fmt.Sprintf(page, "", "  Non-2xx or 3xx responses: 12\n"), "Requests/sec: 0.00\n",
		fmt.Sprintf(page, "  Socket errors: connect 0, read 3, write 0, timeout 0\n", ""),
	} {
		if rate, err := Wrk(bad); err == nil {
			t.Errorf("wrk said %q: %v", bad, rate)
		}
	}
}

func TestBenchmarks(t *testing.T) {
	s, err := Benchmarks(`goos: linux
cpu: Some CPU
BenchmarkDormantMemory-2      	       1	 0 ns/op	      1400 B/slept
BenchmarkSome/sub-2 	 1	 99 ns/op	 3.2e3 things/s
PASS
`)
	if err != nil || s["BenchmarkDormantMemory B/slept"] != 1400 || s["BenchmarkSome/sub things/s"] != 3200 {
		t.Errorf("%v %v", s, err)
	}
	for _, bad := range []string{"", "PASS\n", "BenchmarkX-2 1 much B/op\n"} {
		if s, err := Benchmarks(bad); err == nil {
			t.Errorf("%q: %v", bad, s)
		}
	}
}
