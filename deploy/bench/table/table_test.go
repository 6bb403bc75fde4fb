package table

import (
	"bytes"
	"flag"
	"math"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write the golden file anew")

// rows has one of each kind.
func rows() []Row {
	const stock = "stock wireguard-go"
	return []Row{
		{
			Name: "all met", Unit: "Mbit/s", Floor: Ratio(0.9), Goal: Ratio(1.1), BaselineName: stock,
			Ours: []float64{2400, 2200, 3000}, Baseline: []float64{2000, 2000, 2000}, Raw: []float64{50000.5},
		},
		{
			Name: "goal missed", Unit: "us", LowerIsBetter: true, Floor: Ratio(1.5), Goal: Ratio(1.25), BaselineName: stock,
			Ours: []float64{140}, Baseline: []float64{100}, Raw: []float64{16.43},
		},
		{
			Name: "floor missed", Unit: "us", LowerIsBetter: true, Floor: Ratio(1.5), Goal: Ratio(1.25), BaselineName: stock,
			Ours: []float64{160.04}, Baseline: []float64{100},
		},
		{Name: "absolute", Unit: "KiB", LowerIsBetter: true, Floor: Value(2), Goal: Value(1), Ours: []float64{1.456}},
		{
			Name: "no loss", Unit: "%", LowerIsBetter: true, Floor: Value(0), Goal: Value(0), BaselineName: stock,
			Ours: []float64{0, 0, 0}, Baseline: []float64{0, 0, 0},
		},
		{
			Name: "the goal is enough", Unit: "%", LowerIsBetter: true, Floor: Ratio(0.5), Goal: Value(5), BaselineName: stock,
			Ours: []float64{4}, Baseline: []float64{0},
		},
		{
			Name: "a round failed", Unit: "per s", Floor: Ratio(0.5), Goal: Ratio(1), BaselineName: stock,
			Ours: []float64{100, math.NaN(), 300}, Baseline: []float64{100, 100, 100},
		},
		{
			Name: "all rounds failed", Unit: "per s", Floor: Ratio(0.5), Goal: Ratio(1), BaselineName: stock,
			Ours: []float64{math.NaN()}, Baseline: []float64{100},
		},
	}
}

func TestGolden(t *testing.T) {
	m := Machine{Machine: "2 x Some CPU, 24 GiB", Versions: map[string]string{"go": "1.26.8", "linux": "6.18"}}
	quick := m
	quick.Quick = true
	got := &txtar.Archive{Comment: []byte("What the benchmark prints; go test ./bench/table -update writes it anew.\n")}
	for _, f := range []struct {
		name  string
		m     Machine
		print func(*bytes.Buffer, Machine) error
	}{
		{"text", m, func(b *bytes.Buffer, m Machine) error { return Text(b, m, rows()) }},
		{"text quick", quick, func(b *bytes.Buffer, m Machine) error { return Text(b, m, rows()) }},
		{"markdown", m, func(b *bytes.Buffer, m Machine) error { return Markdown(b, m, rows()) }},
		{"json", m, func(b *bytes.Buffer, m Machine) error { return JSON(b, m, rows()) }},
	} {
		var b bytes.Buffer
		if err := f.print(&b, f.m); err != nil {
			t.Fatal(err)
		}
		got.Files = append(got.Files, txtar.File{Name: f.name, Data: b.Bytes()})
	}
	const golden = "testdata/golden.txtar"
	if *update {
		if err := os.WriteFile(golden, txtar.Format(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(txtar.Format(got))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestMet(t *testing.T) {
	want := map[string][2]bool{ // floor, goal
		"all met": {true, true}, "goal missed": {true, false}, "floor missed": {false, false}, "absolute": {true, false},
		"no loss": {true, true}, "the goal is enough": {true, true}, "a round failed": {false, false}, "all rounds failed": {false, false},
	}
	for _, r := range rows() {
		if got := [2]bool{r.Met(), r.GoalMet()}; got != want[r.Name] {
			t.Errorf("%s: floor and goal are met: %v, want %v", r.Name, got, want[r.Name])
		}
	}
	if AllMet(rows()) || !AllMet(rows()[:2]) {
		t.Error("AllMet does not say whether all floors are met")
	}
	if (Row{Floor: Ratio(1)}).Met() || (Row{Floor: Value(1), LowerIsBetter: true}).Met() {
		t.Error("what was not measured is met")
	}
}

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   Spread
	}{
		{[]float64{3}, Spread{3, 3, 3}},
		{[]float64{3, 1, 2}, Spread{2, 1, 3}},
		{[]float64{4, 1, 2, 3}, Spread{2.5, 1, 4}},
		{[]float64{math.NaN(), 1, math.NaN()}, Spread{1, 1, 1}},
	} {
		if got := Of(c.values); got != c.want {
			t.Errorf("%v: %v, want %v", c.values, got, c.want)
		}
	}
	// The ratio is of each round with its own baseline: a machine that is twice
	// as slow in one round changes nothing.
	r := Row{Ours: []float64{50, 100, 100}, Baseline: []float64{50, 100, 100}}
	if got := r.Ratio(); got != (Spread{1, 1, 1}) {
		t.Errorf("the ratio of a disturbed round is %v", got)
	}
}

func TestFigure(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.123: "0.12", 9.999: "10.00", 12.34: "12.3", 123.4: "123", 1234: "1,234", 1234567: "1,234,567", -1234: "-1,234", 100: "100",
	} {
		if got := figure(v); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
}
