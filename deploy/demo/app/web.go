package app

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
)

//go:embed web
var files embed.FS

var pages = template.Must(template.ParseFS(files, "web/*.html"))

// Customer is one line of the CRM's list.
type Customer struct {
	Number int    `json:"number"`
	Name   string `json:"name"`
	City   string `json:"city"`
	Since  string `json:"since"`
	Open   int    `json:"open_cases"`
}

var customers = []Customer{
	{10021, "Fjällgrens Bageri AB", "Umeå", "2019-04-02", 2},
	{10034, "Kallhed & Dotter", "Sundsvall", "2021-11-15", 0},
	{10058, "Norrsken Möbler", "Luleå", "2017-01-30", 1},
	{10077, "Saaristo Kaluste Oy", "Turku", "2023-06-08", 4},
	{10102, "Vågbryn Rederi", "Göteborg", "2020-09-21", 0},
}

// Payment is one line of the payments app.
type Payment struct {
	Number   int    `json:"number"`
	Customer string `json:"customer"`
	Amount   string `json:"amount"`
	State    string `json:"state"`
}

var payments = []Payment{
	{88101, "Fjällgrens Bageri AB", "12 400,00 SEK", "due"},
	{88102, "Saaristo Kaluste Oy", "1 120,50 EUR", "paid"},
	{88103, "Norrsken Möbler", "6 075,00 SEK", "reminded"},
}

// Tick is one message of the CRM's live call queue.
type Tick struct {
	Seq     int       `json:"seq"`
	Time    time.Time `json:"time"`
	Waiting int       `json:"waiting"`
	Longest string    `json:"longest"`
	Next    string    `json:"next"`
}

// tickEvery is the pace of the call queue.
const tickEvery = 200 * time.Millisecond

// Web is what both web apps are made of.
type Web struct {
	Verify func(*http.Request) (Who, error)
	// Hosts are the names that a browser shows for this app; a WebSocket from
	// a page of any other host is refused.
	Hosts []string
	Log   *slog.Logger
}

// handle adds a page that needs to know who is asking.
func (a *Web) handle(mux *http.ServeMux, pattern string, fn func(http.ResponseWriter, *http.Request, Who)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		who, err := a.Verify(r)
		if err != nil {
			a.Log.Warn("refused a request", "path", r.URL.Path, "err", err)
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		fn(w, r, who)
	})
}

// view is what the pages are filled with.
type view struct {
	App, Title string
	Who        Who
	Rows       any
}

func (a *Web) page(name, app, title string, rows any) func(http.ResponseWriter, *http.Request, Who) {
	return func(w http.ResponseWriter, _ *http.Request, who Who) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; img-src 'self' data:")
		if err := pages.ExecuteTemplate(w, name, view{app, title, who, rows}); err != nil {
			a.Log.Warn("writing a page", "err", err)
		}
	}
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func (a *Web) common(mux *http.ServeMux) {
	for _, name := range []string{"style.css", "queue.js"} {
		mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, files, "web/"+name) })
	}
	a.handle(mux, "GET /api/me", func(w http.ResponseWriter, _ *http.Request, who Who) { reply(w, who) })
}

// CRM returns the customer app: a list, a live call queue over WebSocket, and
// an export that policy keeps from most.
func CRM(a Web) http.Handler {
	mux := http.NewServeMux()
	a.common(mux)
	a.handle(mux, "GET /{$}", a.page("crm.html", "CRM", "Customers", customers))
	a.handle(mux, "GET /queue", a.page("queue.html", "CRM", "Call queue", nil))
	a.handle(mux, "GET /ws", a.queue)
	a.handle(mux, "GET /api/customers", func(w http.ResponseWriter, _ *http.Request, _ Who) { reply(w, map[string]any{"items": customers}) })
	a.handle(mux, "POST /export", func(w http.ResponseWriter, _ *http.Request, _ Who) {
		w.Header().Set("Content-Type", "text/csv; charset=utf-8")
		w.Header().Set("Content-Disposition", `attachment; filename="customers.csv"`)
		var b strings.Builder
		b.WriteString("number,name,city,since\n")
		for _, c := range customers {
			fmt.Fprintf(&b, "%d,%q,%q,%s\n", c.Number, c.Name, c.City, c.Since)
		}
		_, _ = io.WriteString(w, b.String())
	})
	return mux
}

// Payments returns the payments app.
func Payments(a Web) http.Handler {
	mux := http.NewServeMux()
	a.common(mux)
	a.handle(mux, "GET /{$}", a.page("payments.html", "Payments", "Payments", payments))
	a.handle(mux, "GET /api/payments", func(w http.ResponseWriter, _ *http.Request, _ Who) { reply(w, map[string]any{"items": payments}) })
	return mux
}

// queue sends a Tick every tickEvery until the browser leaves.
func (a *Web) queue(w http.ResponseWriter, r *http.Request, who Who) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{OriginPatterns: a.Hosts})
	if err != nil {
		a.Log.Warn("refused a WebSocket", "err", err)
		return
	}
	defer c.CloseNow()
	a.Log.Info("call queue opened", "name", who.Name)
	ctx := c.CloseRead(r.Context())
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for seq := 1; ; seq++ {
		next := customers[(seq/10)%len(customers)]
		if err := send(ctx, c, Tick{
			Seq: seq, Time: time.Now().UTC(), Waiting: 3 + (seq/5)%7,
			Longest: (time.Duration(20+seq/5) * time.Second).String(), Next: next.Name,
		}); err != nil {
			a.Log.Info("call queue closed", "name", who.Name, "err", err)
			return
		}
		select {
		case <-ctx.Done():
			a.Log.Info("call queue closed", "name", who.Name, "err", ctx.Err())
			return
		case <-tick.C:
		}
	}
}

func send(ctx context.Context, c *websocket.Conn, t Tick) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return wsjson.Write(ctx, c, t)
}
