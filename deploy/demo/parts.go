package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/portvakt/portvakt/deploy/demo/app"
	"github.com/portvakt/portvakt/deploy/demo/idp"
	"github.com/portvakt/portvakt/deploy/demo/stage"
	"github.com/portvakt/portvakt/internal/wire"
)

// parts are the programs of the demo's company. The demo starts its own binary
// once for each, as `demo idp`, `demo crm` and so on.
var parts = map[string]func(context.Context, []string, *slog.Logger) error{
	"idp":      runIdP,
	"crm":      func(ctx context.Context, a []string, l *slog.Logger) error { return runWeb(ctx, "crm", a, l) },
	"payments": func(ctx context.Context, a []string, l *slog.Logger) error { return runWeb(ctx, "payments", a, l) },
	"desk":     runDesk,
	"voice":    runVoice,
}

func listenFlag(name string, args []string, more func(*flag.FlagSet)) (string, error) {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	listen := fs.String("listen", "", "loopback address")
	if more != nil {
		more(fs)
	}
	if err := fs.Parse(args); err != nil {
		return "", err
	}
	if *listen == "" {
		return "", errors.New(name + " needs --listen")
	}
	return *listen, nil
}

func runIdP(ctx context.Context, args []string, log *slog.Logger) error {
	listen, err := listenFlag("idp", args, nil)
	if err != nil {
		return err
	}
	h, err := idp.New(ctx, idp.Config{
		Issuer: "http://" + listen + "/dex", ClientID: stage.ClientID,
		People: []idp.Person{stage.Anna, stage.Ben}, Log: log,
	})
	if err != nil {
		return err
	}
	return serve(ctx, listen, h)
}

func runWeb(ctx context.Context, name string, args []string, log *slog.Logger) error {
	var ca, gateway string
	listen, err := listenFlag(name, args, func(fs *flag.FlagSet) {
		fs.StringVar(&ca, "ca", "", "PEM file of the gateway's CA")
		fs.StringVar(&gateway, "gateway", "", "the gateway's public URL")
	})
	if err != nil {
		return err
	}
	client, err := app.ClientTrusting(ca, wire.InternalName)
	if err != nil {
		return err
	}
	v := &app.Verifier{Audience: name, Issuer: gateway, JWKS: gateway + wire.PathJWKS, Client: client}
	web := app.Web{Verify: v.Verify, Hosts: []string{name + ".demo.example"}, Log: log}
	if name == "crm" {
		return serve(ctx, listen, app.CRM(web))
	}
	return serve(ctx, listen, app.Payments(web))
}

func runDesk(ctx context.Context, args []string, log *slog.Logger) error {
	listen, err := listenFlag("desk", args, nil)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	return app.Desk(ctx, l, log)
}

func runVoice(ctx context.Context, args []string, log *slog.Logger) error {
	listen, err := listenFlag("voice", args, nil)
	if err != nil {
		return err
	}
	c, err := net.ListenPacket("udp", listen)
	if err != nil {
		return err
	}
	return app.Voice(ctx, c, log)
}

// serve answers HTTP until ctx ends.
func serve(ctx context.Context, listen string, h http.Handler) error {
	srv := &http.Server{Addr: listen, Handler: h, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- srv.ListenAndServe() }()
	select {
	case err := <-ended:
		return fmt.Errorf("serving %s: %w", listen, err)
	case <-ctx.Done():
		srv.Close()
		<-ended
		return nil
	}
}
