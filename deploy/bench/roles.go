//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/portvakt/portvakt/deploy/bench/lab"
	"github.com/portvakt/portvakt/deploy/bench/load"
	"github.com/portvakt/portvakt/deploy/demo/idp"
	"github.com/portvakt/portvakt/deploy/demo/stage"
)

// roles are what this program plays in a namespace: it starts itself again as
// `bench ROLE`.
var roles = map[string]func(ctx context.Context, args []string) error{
	"idp":      playIdP,
	"echo":     playEcho,
	"get":      playGet,
	"pingpong": playPingPong,
	"connect":  playConnect,
	"voice":    playVoice,
	"laptop":   playLaptop,
	"bad":      playBad,
}

func playIdP(ctx context.Context, _ []string) error {
	dex, err := idp.New(ctx, idp.Config{Issuer: issuer, ClientID: stage.ClientID, People: []idp.Person{stage.Anna}})
	if err != nil {
		return err
	}
	return serve(ctx, dex, "0.0.0.0:"+idpPort)
}

// serve answers HTTP at some addresses until ctx ends.
func serve(ctx context.Context, h http.Handler, listen ...string) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, len(listen))
	for _, addr := range listen {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		go func() { ended <- srv.Serve(l) }()
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return srv.Close()
	}
}

// playEcho answers pings and voice at both addresses of the app.
func playEcho(ctx context.Context, _ []string) error {
	l, err := net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", portEcho))
	if err != nil {
		return err
	}
	ended := make(chan error, 1+2*voicePorts)
	go func() { ended <- load.EchoTCP(ctx, l) }()
	for _, a := range []netip.Addr{lab.App, lab.AppStock} {
		for i := range uint16(voicePorts) {
			c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, portVoice+i)))
			if err != nil {
				return err
			}
			go func() { ended <- load.EchoUDP(ctx, c) }()
		}
	}
	return <-ended
}

// playGet prints a page.
func playGet(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("get takes one URL")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		_, err := io.Copy(os.Stdout, resp.Body)
		return err
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
	return fmt.Errorf("%s: %s", resp.Status, b)
}

// loadFlags reads what every load has.
func loadFlags(name string, args []string, more func(*flag.FlagSet)) (to string, d time.Duration, err error) {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.StringVar(&to, "to", "", "address")
	fs.DurationVar(&d, "for", time.Second, "how long")
	if more != nil {
		more(fs)
	}
	err = fs.Parse(args)
	return to, d, err
}

func playPingPong(ctx context.Context, args []string) error {
	var every time.Duration
	to, d, err := loadFlags("pingpong", args, func(fs *flag.FlagSet) { fs.DurationVar(&every, "every", 0, "at most one in this time") })
	if err != nil {
		return err
	}
	return say(load.PingPong(ctx, to, every, d))
}

func playConnect(ctx context.Context, args []string) error {
	var workers int
	to, d, err := loadFlags("connect", args, func(fs *flag.FlagSet) { fs.IntVar(&workers, "workers", 8, "at the same time") })
	if err != nil {
		return err
	}
	return say(load.Connect(ctx, to, workers, d))
}

func playVoice(ctx context.Context, args []string) error {
	var v load.Voice
	var first uint
	to, d, err := loadFlags("voice", args, func(fs *flag.FlagSet) {
		fs.IntVar(&v.Flows, "flows", 20, "calls")
		fs.IntVar(&v.Size, "size", voiceSize, "bytes of a datagram")
		fs.IntVar(&v.Ports, "ports", 1, "ports called from each local port")
		fs.IntVar(&v.Rate, "rate", 50, "datagrams per second and call")
		fs.UintVar(&first, "first-port", 0, "local port of the first call")
	})
	if err != nil {
		return err
	}
	if v.To, err = netip.ParseAddrPort(to); err != nil {
		return err
	}
	v.For, v.FirstPort = d, uint16(first)
	return say(v.Run(ctx))
}

// say prints a result for the program that started this one.
func say[T any](v T, err error) error {
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(v)
}
