// Package table judges measurements: every row has a floor it must reach and a
// goal it should. It prints them for people and for programs.
package table

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Limit is where a row is judged. The zero Limit is none.
type Limit struct {
	Set   bool
	Value float64
	// Absolute compares the value itself; otherwise the ratio to the baseline.
	Absolute bool
}

// Ratio is a limit on the ratio to the baseline.
func Ratio(v float64) Limit { return Limit{Set: true, Value: v} }

// Value is a limit in the row's own unit.
func Value(v float64) Limit { return Limit{Set: true, Value: v, Absolute: true} }

// Row is one line: what was measured round by round, and how it is judged.
type Row struct {
	Name, Unit string
	// LowerIsBetter turns the limits from least into most.
	LowerIsBetter bool
	Floor, Goal   Limit
	// Ours and Baseline hold one value a round, in the same order; Baseline is
	// empty for rows with absolute limits only.
	Ours, Baseline []float64
	BaselineName   string
	// Raw is the same without any tunnel, for orientation; it may be empty.
	Raw []float64
}

// Spread is the median of some rounds with the smallest and the largest.
type Spread struct{ Median, Min, Max float64 }

// Of returns the spread of values; NaN when there are none. A round that
// failed is NaN and left out.
func Of(values []float64) Spread {
	s := slices.DeleteFunc(slices.Clone(values), math.IsNaN)
	slices.Sort(s)
	if len(s) == 0 {
		return Spread{math.NaN(), math.NaN(), math.NaN()}
	}
	m := s[len(s)/2]
	if len(s)%2 == 0 {
		m = (s[len(s)/2-1] + s[len(s)/2]) / 2
	}
	return Spread{m, s[0], s[len(s)-1]}
}

// Ratio is the spread of the rounds' own ratios: what disturbed a whole round
// disturbed both. Two zeros are even; a baseline of zero alone gives infinity.
func (r Row) Ratio() Spread {
	var all []float64
	for i := range min(len(r.Ours), len(r.Baseline)) {
		if r.Ours[i] == 0 && r.Baseline[i] == 0 {
			all = append(all, 1)
			continue
		}
		all = append(all, r.Ours[i]/r.Baseline[i])
	}
	return Of(all)
}

// reached says whether the row reaches a limit. A row with a round that failed
// reaches none.
func (r Row) reached(l Limit) bool {
	if !l.Set {
		return true
	}
	judged := slices.Clone(r.Ours)
	v := Of(r.Ours).Median
	if !l.Absolute {
		judged = append(judged, r.Baseline...)
		v = r.Ratio().Median
	}
	if slices.ContainsFunc(judged, math.IsNaN) {
		return false
	}
	if r.LowerIsBetter {
		return v <= l.Value
	}
	return v >= l.Value // false for NaN: what was not measured is not met
}

// Met says whether the row's floor is reached. Whoever reaches the goal has
// reached the floor, also where the two are not of one kind.
func (r Row) Met() bool { return r.reached(r.Floor) || r.Goal.Set && r.reached(r.Goal) }

// GoalMet says whether the goal is reached.
func (r Row) GoalMet() bool { return r.reached(r.Goal) }

// Machine is what ran the benchmark.
type Machine struct {
	Machine  string            `json:"machine"`
	Versions map[string]string `json:"versions"`
	Quick    bool              `json:"quick"`
}

// JSON writes everything as one object.
func JSON(w io.Writer, m Machine, rows []Row) error {
	type row struct {
		Name         string   `json:"name"`
		Unit         string   `json:"unit"`
		Ours         *float64 `json:"ours"`
		Baseline     *float64 `json:"baseline"`
		BaselineName string   `json:"baseline_name"`
		Ratio        *float64 `json:"ratio"`
		Floor        *float64 `json:"floor"`
		Goal         *float64 `json:"goal"`
		Met          bool     `json:"met"`
	}
	out := struct {
		Machine
		Rows []row `json:"rows"`
	}{Machine: m, Rows: []row{}}
	for _, r := range rows {
		out.Rows = append(out.Rows, row{
			Name: r.Name, Unit: r.Unit, Ours: number(Of(r.Ours).Median), Baseline: number(Of(r.Baseline).Median),
			BaselineName: r.BaselineName, Ratio: number(r.Ratio().Median), Floor: r.Floor.number(), Goal: r.Goal.number(), Met: r.Met(),
		})
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(out)
}

// number is v with four significant digits, or null when there is none.
func number(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	short, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 4, 64), 64)
	if err != nil {
		return nil
	}
	return &short
}

func (l Limit) number() *float64 {
	if !l.Set {
		return nil
	}
	return &l.Value
}

// columns are the table's, in order.
var columns = []string{"row", "ours", "baseline", "ratio", "raw veth", "floor", "goal", ""}

// Text writes the table for a terminal, and a last line that says how it went.
func Text(w io.Writer, m Machine, rows []Row) error {
	lines := [][]string{columns}
	for _, r := range rows {
		lines = append(lines, r.cells(m.Quick))
	}
	width := make([]int, len(columns))
	for _, l := range lines {
		for i, c := range l {
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	var b strings.Builder
	for _, l := range lines {
		line := ""
		for i, c := range l {
			line += c + strings.Repeat(" ", width[i]-len([]rune(c))+2)
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	b.WriteString(summary(rows, m.Quick) + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// Markdown writes the section of docs/benchmarks.md.
func Markdown(w io.Writer, m Machine, rows []Row) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s. ", m.Machine)
	for _, k := range slices.Sorted(func(yield func(string) bool) {
		for k := range m.Versions {
			if !yield(k) {
				return
			}
		}
	}) {
		fmt.Fprintf(&b, "%s %s; ", k, m.Versions[k])
	}
	text := strings.TrimSuffix(b.String(), "; ") + ".\n\n"
	line := func(cells []string) { text += "| " + strings.Join(cells, " | ") + " |\n" }
	line(columns)
	line(slices.Repeat([]string{"---"}, len(columns)))
	for _, r := range rows {
		line(r.cells(m.Quick))
	}
	_, err := io.WriteString(w, text+"\n"+summary(rows, m.Quick)+"\n")
	return err
}

func (r Row) cells(quick bool) []string {
	unit := ""
	if r.Unit != "" {
		unit = " " + r.Unit
	}
	base, raw, ratio := "", "", ""
	if len(r.Baseline) > 0 {
		base = Of(r.Baseline).String() + unit
		ratio = r.Ratio().ratio()
	}
	if len(r.Raw) > 0 {
		raw = figure(Of(r.Raw).Median) + unit
	}
	goal := r.limit(r.Goal)
	if quick {
		goal = ""
	}
	ours := Of(r.Ours).String() + unit
	if math.IsNaN(Of(r.Ours).Median) {
		ours = "failed"
	}
	return []string{r.Name, ours, base, ratio, raw, r.limit(r.Floor), goal, r.verdict(quick)}
}

func (r Row) limit(l Limit) string {
	if !l.Set {
		return ""
	}
	sign := "≥ "
	if r.LowerIsBetter {
		sign = "≤ "
	}
	if l.Absolute {
		return strings.TrimRight(sign+strconv.FormatFloat(l.Value, 'g', -1, 64)+" "+r.Unit, " ")
	}
	return sign + strconv.FormatFloat(l.Value, 'g', -1, 64) + "x"
}

func (r Row) verdict(quick bool) string {
	switch {
	case !r.Met():
		return "FLOOR MISSED"
	case !quick && !r.GoalMet():
		return "goal missed"
	}
	return "met"
}

func summary(rows []Row, quick bool) string {
	floors, goals := 0, 0
	for _, r := range rows {
		if !r.Met() {
			floors++
		} else if !r.GoalMet() {
			goals++
		}
	}
	text := fmt.Sprintf("%d of %d floors met", len(rows)-floors, len(rows))
	if !quick {
		text += fmt.Sprintf(", %d of %d goals", len(rows)-floors-goals, len(rows))
	}
	return text + "."
}

// String is the median, and the range where there is one.
func (s Spread) String() string {
	if math.IsNaN(s.Median) {
		return "-"
	}
	if s.Min == s.Max {
		return figure(s.Median)
	}
	return fmt.Sprintf("%s [%s-%s]", figure(s.Median), figure(s.Min), figure(s.Max))
}

func (s Spread) ratio() string {
	if math.IsNaN(s.Median) {
		return "-"
	}
	f := func(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) }
	if s.Min == s.Max {
		return f(s.Median)
	}
	return fmt.Sprintf("%s [%s-%s]", f(s.Median), f(s.Min), f(s.Max))
}

// figure is a number with as many digits as matter, thousands apart.
func figure(v float64) string {
	digits := 2
	switch a := math.Abs(v); {
	case a == 0 || a >= 100:
		digits = 0
	case a >= 10:
		digits = 1
	}
	s := strconv.FormatFloat(v, 'f', digits, 64)
	whole, rest, _ := strings.Cut(s, ".")
	for i := len(whole) - 3; i > 0 && whole[i-1] != '-'; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if rest != "" {
		return whole + "." + rest
	}
	return whole
}

// AllMet says whether every floor is reached.
func AllMet(rows []Row) bool {
	return !slices.ContainsFunc(rows, func(r Row) bool { return !r.Met() })
}
