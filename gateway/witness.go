package gateway

import (
	"fmt"
	"net/url"
	"os"

	"github.com/portvakt/portvakt/gateway/audit/notary"
	"github.com/portvakt/portvakt/gateway/audit/sink"
)

// WitnessConfig names somebody outside who cosigns the decision log's
// checkpoints.
type WitnessConfig struct {
	URL    string `yaml:"url"`     // https; add-checkpoint is below it
	Key    string `yaml:"key"`     // NAME+HASH+KEY
	CAFile string `yaml:"ca_file"` // roots to trust instead of the system's
}

func (c *Config) checkWitness(bad func(string, string, ...any)) {
	w := c.Audit.Witness
	if w == (WitnessConfig{}) {
		return
	}
	if u, err := url.Parse(w.URL); err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		bad("audit.witness.url", "expected an https URL, such as https://witness.example.com/portvakt, got %q", w.URL)
	}
	if _, err := notary.ParseWitness(w.Key); err != nil {
		bad("audit.witness.key", "%v", err)
	}
	if w.CAFile != "" {
		if _, err := os.Stat(w.CAFile); err != nil {
			bad("audit.witness.ca_file", "expected a file that can be read: %v", err)
		}
	}
}

// openWitness reads what was cosigned last, if there is a witness.
func (g *gateway) openWitness() error {
	w := g.cfg.Audit.Witness
	if w == (WitnessConfig{}) {
		return nil
	}
	conf, err := sink.TLSConfig(w.CAFile)
	if err == nil {
		g.witness, err = g.notary.Witness(notary.WitnessConfig{URL: w.URL, Key: w.Key, TLS: conf, Log: g.log})
	}
	if err != nil {
		return fmt.Errorf("preparing the witness of the decision log: %w", err)
	}
	return nil
}

// cosigned is the newest checkpoint that the witness cosigned; the zero one
// without it.
func (g *gateway) cosigned() notary.Cosigned {
	if g.witness == nil {
		return notary.Cosigned{}
	}
	return g.witness.Last()
}
