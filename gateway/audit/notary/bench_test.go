package notary_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/audit/notary"
)

// BenchmarkVerify signs and verifies a log of a million records.
func BenchmarkVerify(b *testing.B) {
	dir := b.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	const records = 1_000_000
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	pad := strings.Repeat("x", 600)
	for i := range records {
		fmt.Fprintf(f, "{\"seq\":%d,\"time\":\"2026-03-04T08:00:00Z\",\"kind\":\"decision\",\"message\":\"%s\"}\n", i+1, pad)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	n, err := notary.New(notary.Config{LogFile: path, Dir: filepath.Join(dir, "tree"), KeyFile: filepath.Join(dir, "key")})
	if err != nil {
		b.Fatal(err)
	}
	begun := time.Now()
	ctx, cancel := context.WithCancel(b.Context())
	cancel()
	if err := errors.Join(n.Run(ctx), n.Healthy()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(records/time.Since(begun).Seconds(), "signed/s")
	v := verifierIn(b, filepath.Join(dir, "tree"))
	for b.Loop() {
		if _, err := notary.Verify(path, filepath.Join(dir, "tree"), v); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(records*float64(b.N)/b.Elapsed().Seconds(), "verified/s")
}
