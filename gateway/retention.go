package gateway

import (
	"cmp"
	"context"
	"maps"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/people"
)

const defaultWaitForSinks = Days(30 * 24 * time.Hour)

// RetentionConfig says for how long the decision log can be read.
type RetentionConfig struct {
	// Records is for how long records are kept; default: for ever.
	Records Days `yaml:"records"`
	// Personal is for how long personal data can be opened; default: as long
	// as the records.
	Personal Days `yaml:"personal"`
	// Fields of it that can be opened for less.
	Fields RetentionFields `yaml:"fields"`
	// WaitForSinks is how much longer records are kept that a sink has not
	// got; default 30d.
	WaitForSinks Days `yaml:"wait_for_sinks"`
}

// RetentionFields says for how long each people.Field can be opened; default: as
// long as all personal data.
type RetentionFields struct {
	Address Days `yaml:"address"`
	Device  Days `yaml:"device"`
	Facts   Days `yaml:"facts"`
	Person  Days `yaml:"person"`
	Request Days `yaml:"request"`
}

// set returns those that are set; wrong ones are negative.
func (f RetentionFields) set() map[people.Field]Days {
	all := map[people.Field]Days{people.Address: f.Address, people.Device: f.Device, people.Facts: f.Facts, people.Person: f.Person, people.Request: f.Request}
	maps.DeleteFunc(all, func(_ people.Field, kept Days) bool { return kept == 0 })
	return all
}

// effective is what is done: facts hold all others, and go with the first of
// them.
func (f RetentionFields) effective() map[people.Field]time.Duration {
	out := map[people.Field]time.Duration{}
	for field, kept := range f.set() {
		out[field] = time.Duration(kept)
	}
	for _, kept := range out {
		if facts, ok := out[people.Facts]; !ok || kept < facts {
			out[people.Facts] = kept
		}
	}
	return out
}

func (c *Config) checkRetention(bad func(key, format string, args ...any)) {
	r := c.Audit.Retention
	if r.Personal < 0 {
		bad("audit.retention.personal", "expected a number of days such as 90d")
	}
	if r.Records < 0 {
		bad("audit.retention.records", "expected a number of days such as 400d")
	} else if r.Records > 0 && r.Records < r.Personal {
		bad("audit.retention.personal", "expected no more than audit.retention.records")
	}
	c.checkRetentionFields(bad)
	if r.WaitForSinks < 0 {
		bad("audit.retention.wait_for_sinks", "expected a number of days such as 30d")
	}
}

func (c *Config) checkRetentionFields(bad func(key, format string, args ...any)) {
	r := c.Audit.Retention
	longest, of := r.Personal, "audit.retention.personal"
	if longest <= 0 {
		longest, of = r.Records, "audit.retention.records"
	}
	set := r.Fields.set()
	for i, name := range people.Names() {
		key, kept := "audit.retention.fields."+name, set[people.Field(i)]
		switch {
		case kept < 0:
			bad(key, "expected a number of days such as 14d")
		case longest > 0 && kept > longest:
			bad(key, "expected no more than %s", of)
		case kept > 0 && kept < r.Fields.Facts:
			bad("audit.retention.fields.facts", "expected no more than %s: what a decision was made on holds it too", key)
		}
	}
}

// retain removes what the log has kept for long enough, if it is to; and watches
// the machine's clock, also until somebody asks for a retention.
func (g *gateway) retain(ctx context.Context) error {
	keep := g.cfg.Audit.Retention
	return g.audit.Retain(ctx, audit.Retention{
		Personal: time.Duration(cmp.Or(keep.Personal, keep.Records)), Fields: keep.Fields.effective(), Records: time.Duration(keep.Records),
		Keep: audit.Keep{
			Signed: func() uint64 { return uint64(g.notary.Last().Size) }, Provable: g.notary.Provable,
			Unsent: g.unsent, Wait: time.Duration(cmp.Or(keep.WaitForSinks, defaultWaitForSinks)),
		},
	})
}

// unsent names the sinks that have not got the record of that number.
func (g *gateway) unsent(seq uint64) (names []string) {
	for _, s := range g.sinks {
		if s.Sent() < seq {
			names = append(names, s.Name())
		}
	}
	return names
}
