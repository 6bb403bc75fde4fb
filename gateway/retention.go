package gateway

import (
	"cmp"
	"context"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
)

const defaultWaitForSinks = Days(30 * 24 * time.Hour)

// RetentionConfig says for how long the decision log can be read.
type RetentionConfig struct {
	// Records is for how long records are kept; default: for ever.
	Records Days `yaml:"records"`
	// Personal is for how long personal data can be opened; default: as long
	// as the records.
	Personal Days `yaml:"personal"`
	// WaitForSinks is how much longer records are kept that a sink has not
	// got; default 30d.
	WaitForSinks Days `yaml:"wait_for_sinks"`
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
	if r.WaitForSinks < 0 {
		bad("audit.retention.wait_for_sinks", "expected a number of days such as 30d")
	}
}

// retain removes what the log has kept for long enough, if it is to.
func (g *gateway) retain(ctx context.Context) error {
	keep := g.cfg.Audit.Retention
	if keep.Personal <= 0 && keep.Records <= 0 {
		return nil
	}
	return g.audit.Retain(ctx, audit.Retention{
		Personal: time.Duration(cmp.Or(keep.Personal, keep.Records)), Records: time.Duration(keep.Records),
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
