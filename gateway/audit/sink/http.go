package sink

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const postTimeout = 30 * time.Second

// poster sends a batch as one POST: lines to a webhook, an ExportLogsServiceRequest
// to an OTLP collector. 2xx means that it arrived.
type poster struct {
	cfg    Config
	client *http.Client
	body   func(Config, []record) ([]byte, error)
	kind   string
}

func newPoster(cfg Config) (*poster, error) {
	conf, err := TLSConfig(cfg.CAFile)
	if err != nil {
		return nil, err
	}
	p := &poster{cfg: cfg, client: &http.Client{
		Timeout:   postTimeout,
		Transport: &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true, Proxy: http.ProxyFromEnvironment, IdleConnTimeout: time.Minute},
		// A redirect would take the records, and the token, elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, body: lines, kind: "application/x-ndjson"}
	switch {
	case cfg.Type == "otlp":
		p.body, p.kind = otlp, "application/json"
	case cfg.Format == "csv":
		p.kind = "text/csv; header=absent"
	case cfg.Format == "cef":
		p.kind = "text/plain; charset=utf-8"
	}
	return p, nil
}

// TLSConfig trusts the roots of a file, or the system's.
func TLSConfig(caFile string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return conf, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("reading ca_file: %w", err)
	}
	conf.RootCAs = x509.NewCertPool()
	if !conf.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", caFile)
	}
	return conf, nil
}

func (p *poster) send(ctx context.Context, batch []record) error {
	body, err := p.body(p.cfg, batch)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.cfg.To, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", p.kind)
	req.Header.Set("Portvakt-Node", p.cfg.Node)
	req.Header.Set("Portvakt-Records", strconv.FormatUint(batch[0].Seq, 10)+"-"+strconv.FormatUint(batch[len(batch)-1].Seq, 10))
	if p.cfg.TokenFile != "" {
		// Read each time: tokens are rotated.
		token, err := os.ReadFile(p.cfg.TokenFile)
		if err != nil {
			return fmt.Errorf("reading token_file: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	said, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if resp.StatusCode/100 != 2 {
		return errors.Join(fmt.Errorf("%s answered %s: %.200q", p.cfg.To, resp.Status, said), resp.Body.Close())
	}
	if p.cfg.Type == "otlp" {
		p.partly(said, batch)
	}
	return errors.Join(err, resp.Body.Close())
}

// partly says that a collector took a batch but for some records. It would refuse
// them again: OTLP 1.x, "Partial Success".
func (p *poster) partly(said []byte, batch []record) {
	var answer struct {
		PartialSuccess struct {
			Rejected json.RawMessage `json:"rejectedLogRecords"` // a number, or text with one
			Message  string          `json:"errorMessage"`
		} `json:"partialSuccess"`
	}
	if json.Unmarshal(said, &answer) != nil {
		return // it may answer in another form, or with nothing
	}
	rejected, _ := strconv.ParseInt(strings.Trim(string(answer.PartialSuccess.Rejected), `"`), 10, 64)
	if rejected > 0 {
		p.cfg.Log.Warn("a collector did not take all records of the decision log", "sink", p.cfg.Name, "rejected", rejected,
			"from", batch[0].Seq, "to", batch[len(batch)-1].Seq, "err", fmt.Sprintf("%.200q", answer.PartialSuccess.Message))
	}
}

// mark implements receiver: what was answered has arrived.
func (p *poster) mark(*position) {}

func (p *poster) close() error {
	p.client.CloseIdleConnections()
	return nil
}

func lines(_ Config, batch []record) ([]byte, error) {
	var b []byte
	for _, r := range batch {
		b = append(b, r.text...)
	}
	return b, nil
}

// otlp is an ExportLogsServiceRequest in the JSON form of OTLP 1.x: one log
// record for each of ours, its attributes under portvakt. Input is left out: a
// decision is made again from the log.
func otlp(cfg Config, batch []record) ([]byte, error) {
	type object = map[string]any
	text := func(key, v string) object { return object{"key": key, "value": object{"stringValue": v}} }
	whole := func(key string, v int64) object {
		return object{"key": key, "value": object{"intValue": strconv.FormatInt(v, 10)}}
	}
	logs := make([]object, 0, len(batch))
	for _, r := range batch {
		attrs := []object{whole("portvakt.seq", int64(r.Seq)), text("event.name", "portvakt."+string(r.Kind))}
		for _, a := range [][2]string{
			{"portvakt.decision", r.Decision},
			{"portvakt.reason", r.Reason},
			{"portvakt.app", r.App},
			{"portvakt.rule", r.Rule},
			{"enduser.id", r.Subject},
			{"portvakt.device", r.Device},
			{"session.id", r.Session},
			{"portvakt.flow", r.Flow},
			{"http.request.method", r.Method},
			{"server.address", r.Host},
			{"url.path", r.Path},
			{"client.address", r.Remote},
			{"portvakt.revision", r.Revision},
			{"portvakt.actor", r.Actor},
			{"portvakt.outcome", r.Outcome},
			{"portvakt.request_hash", r.RequestHash},
			{"portvakt.remedy", r.Remedy},
			{"portvakt.person", r.Person},
		} {
			if a[1] != "" {
				attrs = append(attrs, text(a[0], a[1]))
			}
		}
		if r.Fact != nil {
			attrs = append(attrs, text("portvakt.fact.name", r.Fact.Name), text("portvakt.fact.value", r.Fact.Value), text("portvakt.fact.wanted", r.Fact.Wanted))
		}
		for _, a := range []struct {
			key string
			v   int64
		}{{"http.response.status_code", int64(r.Status)}, {"portvakt.bytes_in", r.BytesIn}, {"portvakt.bytes_out", r.BytesOut}, {"portvakt.duration_ms", r.DurationMS}} {
			if a.v != 0 {
				attrs = append(attrs, whole(a.key, a.v))
			}
		}
		for k, v := range r.Detail {
			attrs = append(attrs, text("portvakt.detail."+k, v))
		}
		if r.Erased {
			attrs = append(attrs, object{"key": "portvakt.erased", "value": object{"boolValue": true}})
		}
		if len(r.Expired) > 0 {
			attrs = append(attrs, text("portvakt.expired", strings.Join(r.Expired, " ")))
		}
		if len(r.Unreadable) > 0 {
			attrs = append(attrs, text("portvakt.unreadable", strings.Join(r.Unreadable, " ")))
		}
		severity := 9 // INFO
		if r.Allow != nil {
			attrs = append(attrs, object{"key": "portvakt.allow", "value": object{"boolValue": *r.Allow}})
			if !*r.Allow {
				severity = 13 // WARN
			}
		}
		said := r.Message
		if said == "" {
			said = string(r.Kind)
		}
		at := strconv.FormatInt(r.Time.UnixNano(), 10)
		logs = append(logs, object{"timeUnixNano": at, "observedTimeUnixNano": at, "severityNumber": severity, "body": object{"stringValue": said}, "attributes": attrs})
	}
	return json.Marshal(object{"resourceLogs": []object{{
		"resource":  object{"attributes": []object{text("service.name", "portvakt-gateway"), text("service.instance.id", cfg.Node)}},
		"scopeLogs": []object{{"scope": object{"name": "portvakt.audit"}, "logRecords": logs}},
	}}})
}
