package agent

import (
	"maps"
	"net/netip"

	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/agent/loopback"
)

func (a *agent) newLoopback() *loopback.Server {
	saved := a.cfg.State.Ports() // the server calls back one at a time
	return loopback.New(loopback.Config{
		ProxyAddr: a.cfg.ProxyAddr, Dial: a.dial, ListenUDP: a.listenUDP, UserAllowed: a.userAllowed,
		LoadPorts: func() (map[string]uint16, error) { return maps.Clone(saved), nil },
		SavePorts: func(ports map[string]uint16) error {
			if maps.Equal(ports, saved) {
				return nil // every State comes by here; the disk need not
			}
			if err := a.cfg.State.SavePorts(ports); err != nil {
				return err
			}
			saved = ports
			return nil
		},
		AllowAnyLocalUser: a.cfg.AllowAnyLocalUser, Log: a.cfg.Log,
	})
}

func pacURL(proxy netip.AddrPort) string { return "http://" + proxy.String() + "/proxy.pac" }

// snapshotApps returns the visible apps with their loopback ports.
func (a *agent) snapshotApps() []localapi.App {
	_, ports := a.loopback.Addresses()
	a.mu.Lock()
	apps := a.apps
	a.mu.Unlock()
	out := make([]localapi.App, 0, len(apps))
	for _, app := range apps {
		item := localapi.App{App: app, Local: []localapi.Mapping{}}
		for _, m := range ports[app.Name] {
			item.Local = append(item.Local, localapi.Mapping{Port: m.Port, Local: m.Local.String()})
		}
		out = append(out, item)
	}
	return out
}
