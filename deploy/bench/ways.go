//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/portvakt/portvakt/deploy/bench/lab"
)

var wayNames = []string{wayRaw, wayStock, wayUserspace, wayTUN, wayRootless, wayNeighbours, wayProcess}

// direct is where the apps are without a gateway of ours.
func direct(a netip.Addr) reach {
	return reach{
		appIperf: netip.AddrPortFrom(a, portIperf), appPages: netip.AddrPortFrom(a, portPages),
		appEcho: netip.AddrPortFrom(a, portEcho), appVoice: netip.AddrPortFrom(a, portVoice),
	}
}

// ways brings up what the rows need. All of it stays up until the end; what is
// not measured idles.
func (b *bench) ways(ctx context.Context, o options, specs []rowSpec) ([]*way, error) {
	uses := func(name string) bool {
		return slices.Contains(o.ways, name) && slices.ContainsFunc(specs, func(s rowSpec) bool { return s.way == name })
	}
	var out []*way
	if uses(wayProcess) {
		out = append(out, &way{name: wayProcess})
	}
	if len(appsOf(specs)) == 0 {
		return out, nil
	}
	if err := b.open(ctx, appsOf(specs)); err != nil {
		return nil, err
	}
	if slices.Contains(o.ways, wayRaw) {
		out = append(out, &way{name: wayRaw, at: lab.AtClient, apps: direct(lab.App)})
	}
	stock, err := b.stock(ctx)
	if err != nil {
		return nil, fmt.Errorf("bringing up stock wireguard-go: %w", err)
	}
	out = append(out, stock)
	if uses(wayUserspace) || uses(wayRootless) || uses(wayNeighbours) {
		g, err := b.gateway(ctx, "gateway", lab.Gateway, 9100, "")
		if err != nil {
			return nil, err
		}
		if uses(wayUserspace) || uses(wayNeighbours) {
			w, err := b.way(ctx, wayUserspace, lab.AtClient, g, true)
			if err != nil {
				return nil, err
			}
			if uses(wayUserspace) {
				out = append(out, w)
			}
			if uses(wayNeighbours) {
				if w, err = b.neighbours(ctx, w, stock, g); err != nil {
					return nil, err
				}
				out = append(out, w)
			}
		}
		if uses(wayRootless) {
			w, err := b.way(ctx, wayRootless, lab.AtClient, g, false)
			if err != nil {
				return nil, err
			}
			out = append(out, w)
		}
	}
	if uses(wayTUN) {
		// One namespace has one agent in TUN mode: this one is another laptop.
		g, err := b.gateway(ctx, "gateway-tun", lab.Gateway2, 9101, ", mode: tun")
		if err != nil {
			return nil, err
		}
		w, err := b.way(ctx, wayTUN, lab.AtClient2, g, true)
		if err != nil {
			return nil, err
		}
		out = append(out, w)
	}
	return out, nil
}

// way brings up a laptop that reaches the apps through a gateway of ours.
func (b *bench) way(ctx context.Context, name string, at lab.Place, g *gateway, tun bool) (*way, error) {
	apps, child, err := b.laptop(ctx, at, name, g, tun)
	if err != nil {
		return nil, err
	}
	if tun {
		if err := b.Names(at, apps[appWeb].Addr().String()+" "+webHost); err != nil {
			return nil, err
		}
	}
	return &way{name: name, at: at, apps: apps, laptop: child, gateway: g.Child}, nil
}

// stock brings up wireguard-go with kernel TUN at both ends. Its gateway
// forwards; the apps see the client's inner address.
func (b *bench) stock(ctx context.Context) (*way, error) {
	const laptop, gateway = "10.99.0.2", "10.99.0.1"
	program := filepath.Join(b.bin, "wireguard-go")
	private := map[lab.Place]string{}
	public := map[lab.Place]string{}
	ifaces := map[lab.Place]string{lab.AtClient: b.Interface("c"), lab.AtGateway: b.Interface("g")}
	children := map[lab.Place]*lab.Child{}
	for at, iface := range ifaces {
		var err error
		if private[at], public[at], err = lab.Key(); err != nil {
			return nil, err
		}
		if children[at], err = b.Start(at, "stock-"+string(at), nil, program, "-f", iface); err != nil {
			return nil, err
		}
	}
	if err := lab.Configure(ctx, ifaces[lab.AtGateway],
		"private_key="+private[lab.AtGateway], fmt.Sprintf("listen_port=%d", stockPort),
		"public_key="+public[lab.AtClient], "allowed_ip="+laptop+"/32"); err != nil {
		return nil, err
	}
	if err := lab.Configure(ctx, ifaces[lab.AtClient],
		"private_key="+private[lab.AtClient], "public_key="+public[lab.AtGateway],
		fmt.Sprintf("endpoint=%s:%d", lab.Gateway, stockPort), "persistent_keepalive_interval=25",
		"allowed_ip="+gateway+"/32", "allowed_ip="+lab.AppStock.String()+"/32"); err != nil {
		return nil, err
	}
	up := func(at lab.Place, own string, more ...string) error {
		dev := ifaces[at]
		return b.IP(ctx, at, append([]string{
			fmt.Sprintf("addr add %s/32 dev %s", own, dev), fmt.Sprintf("link set %s mtu %d up", dev, b.mtu),
		}, more...)...)
	}
	if err := up(lab.AtGateway, gateway, "route add "+laptop+"/32 dev "+ifaces[lab.AtGateway]); err != nil {
		return nil, err
	}
	err := up(lab.AtClient, laptop, "route add "+lab.AppStock.String()+"/32 dev "+ifaces[lab.AtClient])
	return &way{name: wayStock, at: lab.AtClient, apps: direct(lab.AppStock), gateway: children[lab.AtGateway]}, err
}
