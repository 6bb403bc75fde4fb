package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/portvakt/portvakt/gateway/proxy"
)

// Health is the body of /healthz and /readyz.
type Health struct {
	OK bool `json:"ok"`
	// Checks are the parts that were looked at: "ok" or what is wrong.
	Checks map[string]string `json:"checks"`
	// Revision is the policy revision in force.
	Revision string `json:"revision,omitempty"`
}

// healthHandler serves /healthz (may this process go on?), /readyz (does it let
// anyone through?) and /metrics. It listens on loopback only.
func (g *gateway) healthHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answerHealth(w, g.health())
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		answerHealth(w, g.ready())
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(g.metrics(), promhttp.HandlerOpts{}))
	return mux
}

func answerHealth(w http.ResponseWriter, h Health) {
	w.Header().Set("Content-Type", "application/json")
	if !h.OK {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(h) // a prober that went away needs no answer
}

func (g *gateway) health() Health {
	h := Health{OK: true, Checks: map[string]string{"audit": "ok"}}
	if err := g.audit.Healthy(); err != nil {
		h.OK, h.Checks["audit"] = false, err.Error()
	}
	// A log that is not signed is still written, and still holds: the gateway
	// serves, and says so.
	h.Checks["audit_signed"] = "ok"
	if err := g.notary.Healthy(); err != nil {
		h.Checks["audit_signed"] = err.Error()
	}
	h.Checks["audit_clock"] = "ok"
	if err := g.audit.Retaining(); err != nil {
		h.Checks["audit_clock"] = err.Error()
	}
	if g.witness != nil {
		h.Checks["audit_witness"] = "ok"
		if err := g.witness.Healthy(); err != nil {
			h.Checks["audit_witness"] = err.Error()
		}
	}
	for _, s := range g.sinks {
		h.Checks["audit_sink_"+s.Name()] = "ok"
		if err := s.Healthy(); err != nil {
			h.Checks["audit_sink_"+s.Name()] = err.Error()
		}
	}
	if apps := g.proxy.Unreachable(); len(apps) > 0 {
		h.Checks["apps_unreachable"] = strings.Join(apps, ", ")
	}
	if n := len(g.sessions.Lockdowns()); n > 0 {
		h.Checks["lockdowns"] = fmt.Sprintf("%d in force; see: portvakt-gateway lockdown list", n)
	}
	if n := len(g.admin.BreakGlass()); n > 0 {
		h.Checks["break_glass"] = fmt.Sprintf("%d running; see: portvakt-gateway lockdown list", n)
	}
	// The last good revision stays in force, and who is logged in stays so: both
	// are said, and the gateway serves.
	h.Checks["policy"] = "ok"
	if err := g.policyState.get(); err != nil {
		h.Checks["policy"] = "the newest revision was refused: " + err.Error()
	}
	h.Checks["identity"] = "ok"
	if err := g.identity.Healthy(); err != nil {
		h.Checks["identity"] = err.Error()
	}
	return h
}

func (g *gateway) ready() Health {
	h := g.health()
	if r := g.engine.Active(); r != nil {
		h.Revision = r.ID()
		return h
	}
	h.OK = false
	if h.Checks["policy"] == "ok" {
		h.Checks["policy"] = "no revision is in force; everything is refused"
	} else {
		h.Checks["policy"] = "no revision is in force; everything is refused; " + h.Checks["policy"]
	}
	return h
}

func (g *gateway) metrics() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	gauge := func(name, help string, f func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "portvakt", Name: name, Help: help}, f))
	}
	counter := func(name, help string, f func() float64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "portvakt", Name: name, Help: help}, f))
	}
	gauge("devices_connected", "Devices with a registration in force.", func() float64 { return float64(g.sessions.Counts().Devices) })
	gauge("sessions_active", "Logins in force.", func() float64 { return float64(g.sessions.Counts().Sessions) })
	gauge("flows_draining", "Of flows_open those that may be finished although nothing new is allowed.", func() float64 { return float64(g.sessions.Counts().Draining) })
	gauge("flows_open", "Open HTTP exchanges, WebSockets, TCP connections and UDP exchanges.", func() float64 { return float64(g.sessions.Counts().Flows) })
	gauge("lockdowns", "Lockdowns in force.", func() float64 { return float64(len(g.sessions.Lockdowns())) })
	gauge("break_glass", "Administrators who may act alone now.", func() float64 { return float64(len(g.admin.BreakGlass())) })
	gauge("policy_refused", "1 while the newest state of the policy directory is refused and an older one, or none, is in force.", func() float64 {
		if g.policyState.get() != nil {
			return 1
		}
		return 0
	})
	counter("refused_total", "Requests and flows that were refused.", func() float64 { return float64(g.sessions.Counts().Refused) })
	counter("undecided_dropped_total", "Connections and exchanges turned away because too many were waiting for a decision.", func() float64 { return float64(g.proxy.Dropped()) })
	gauge("apps_unreachable", "Apps that could not be connected to several times and not once since; /healthz names them.", func() float64 { return float64(len(g.proxy.Unreachable())) })
	counter("cuts_total", "Open flows that were cut.", func() float64 { return float64(g.sessions.Counts().Cuts) })
	reg.MustRegister(&causes{func() map[string]uint64 {
		s := g.tunnel.Stats()
		return map[string]uint64{"queue": s.Dropped, "malformed": s.Malformed, "not_for_stack": s.NotForStack, "reset_withheld": g.tunnel.Withheld()}
	}, prometheus.NewDesc("portvakt_overlay_dropped_total", "Packets that went no further at the tunnel's stack, and resets a device is not sent any more.", []string{"cause"}, nil)})
	reg.MustRegister(&causes{func() map[string]uint64 {
		s := g.tunnel.Stats()
		_, outside := g.tunnel.Outside()
		return map[string]uint64{"half_open": s.Crowded, "given_up": s.Restless, "device_flows": g.sessions.Counts().Crowded, "websockets": outside.Refused, "websocket_protocol": outside.Faulty}
	}, prometheus.NewDesc("portvakt_connections_refused_total", "Connections refused because their device had too many: that wait for a decision, that it gave up itself, or that are open; and tunnels by WebSocket, because all devices had too many or one broke the protocol.", []string{"cause"}, nil)})
	counter("audit_records_total", "Records appended to the decision log.", func() float64 { return float64(g.audit.Appended()) })
	counter("audit_lost_total", "Records of refusals and cuts that could not be written.", func() float64 { return float64(g.audit.Lost()) })
	gauge("audit_clock_leap_seconds", "How far the machine's clock is ahead of what is believed, negative when behind; while it is not 0 nothing of the decision log is destroyed for its age by it.", func() float64 { return g.audit.ClockLeap().Seconds() })
	gauge("audit_unreadable_fields", "Fields of a day of which something was read from the decision log, since the start, that cannot be opened although its key was not destroyed.", func() float64 { return float64(g.audit.Unreadable()) })
	gauge("audit_signed_records", "Records of the decision log that the latest checkpoint signs.", func() float64 { return float64(g.notary.Last().Size) })
	gauge("audit_cosigned_records", "Records of the decision log in the newest checkpoint that the witness cosigned.", func() float64 { return float64(g.cosigned().Size) })
	gauge("audit_cosigned_timestamp_seconds", "When the witness cosigned it, in seconds since 1970 of its clock; 0 without one.", func() float64 { return max(0, float64(g.cosigned().At.Unix())) })
	gauge("tunnel_peers", "Devices WireGuard has a peer for; the others of devices_connected are dormant.", func() float64 { return float64(g.tunnel.Handshakes().Live) })
	counter("tunnel_hailed_total", "Devices called after a restart.", func() float64 { return float64(g.tunnel.Handshakes().Hailed) })
	counter("tunnel_woken_total", "Dormant devices called for a packet to them.", func() float64 { return float64(g.tunnel.Handshakes().Woken) })
	counter("tunnel_crossed_total", "Devices that called while the gateway called them, and waited for it.", func() float64 { return float64(g.tunnel.Handshakes().Crossed) })
	counter("tunnel_retired_total", "Idle peers that were removed.", func() float64 { return float64(g.tunnel.Handshakes().Removed) })
	for _, s := range g.sinks {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "portvakt", Name: "audit_sink_missed_records", Help: "Records of the decision log that were removed before they arrived at a sink, since the start.", ConstLabels: prometheus.Labels{"sink": s.Name()},
		}, func() float64 { return float64(s.Missed()) }))
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "portvakt", Name: "audit_sink_sent_records", Help: "Records of the decision log that arrived at a sink.", ConstLabels: prometheus.Labels{"sink": s.Name()},
		}, func() float64 { return float64(s.Sent()) }))
	}
	reg.MustRegister(&causes{g.table.Counts, prometheus.NewDesc("portvakt_packets_refused_total", "Packets out of tunnels that the segment filter refused.", []string{"cause"}, nil)})
	reg.MustRegister(&causes{g.tunnel.Refused, prometheus.NewDesc("portvakt_handshakes_refused_total", "Handshake messages, and packets to dormant devices, that went no further.", []string{"cause"}, nil)})
	gauge("websockets", "WebSockets of devices whose network blocks UDP.", func() float64 { _, s := g.tunnel.Outside(); return float64(s.Open) })
	reg.MustRegister(&causes{func() map[string]uint64 {
		u, s := g.tunnel.Outside()
		noSession, barren := g.tunnel.Unopened()
		return map[string]uint64{"no_session": noSession, "no_packet": barren, "unheard": g.tunnel.Unheard(), "udp_unreadable": u.Lost, "udp_empty": u.Empty, "udp_kernel_queue": u.Overflowed, "websocket_queue": s.Dropped, "websocket_oversized": s.Oversized}
	}, prometheus.NewDesc("portvakt_outer_dropped_total", "Datagrams from and to devices that went no further at the sockets or in WireGuard.", []string{"cause"}, nil)})
	gauge("udp_flows", "UDP flows that are open or being decided.", func() float64 { return float64(g.media.Stats().Flows) })
	gauge("udp_sockets", "UDP sockets towards apps.", func() float64 { return float64(g.media.Stats().Sockets) })
	reg.MustRegister(&causes{g.media.Dropped, prometheus.NewDesc("portvakt_udp_dropped_total", "UDP datagrams of devices and apps that went no further.", []string{"cause"}, nil)})
	reg.MustRegister(&lags{
		g.proxy.Lags,
		prometheus.NewDesc("portvakt_http_to_app_seconds", "From the end of a request's parsing until the first byte to an http:// app, decision and record included.", nil, nil),
	})
	return reg
}

// lags collects how long requests are with the gateway.
type lags struct {
	read func() proxy.Lags
	desc *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (l *lags) Describe(ch chan<- *prometheus.Desc) { ch <- l.desc }

// Collect implements prometheus.Collector.
func (l *lags) Collect(ch chan<- prometheus.Metric) {
	s := l.read()
	ch <- prometheus.MustNewConstHistogram(l.desc, s.Count, s.Sum.Seconds(), s.Below())
}

// causes collects counters by cause.
type causes struct {
	counts func() map[string]uint64
	desc   *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *causes) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements prometheus.Collector.
func (c *causes) Collect(ch chan<- prometheus.Metric) {
	for cause, n := range c.counts() {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.CounterValue, float64(n), cause)
	}
}
