//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/gateway/assertion"
	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/media"
	"github.com/portvakt/portvakt/gateway/proxy"
	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

// appsOfKind is how many apps there are of each kind.
const appsOfKind = 4

// company is a gateway without its tunnel in this process, with its store, log
// and policy on disk, and apps that may be elsewhere. What the tunnel would have
// proven, the fleet says.
type company struct {
	dir     string
	apps    apps // where they are
	store   *store.Store
	log     *audit.Log
	engine  *policy.Engine
	manager *session.Manager
	proxy   *proxy.Proxy
	relay   *media.Relay
	roots   *x509.CertPool
	country atomic.Value // where every laptop is
	more    string       // further lines of every app's file
	inject  func([][]byte) int

	stop context.CancelFunc
	runs sync.WaitGroup
	errs chan error
}

// open starts a gateway in dir before apps. inject gets the packets that go
// into the tunnel.
func open(dir string, at *apps, inject func([][]byte) int) (c *company, err error) {
	c = &company{dir: dir, inject: inject, errs: make(chan error, 8)}
	c.apps.Web, c.apps.TCP, c.apps.UDP = at.Web, at.TCP, at.UDP
	c.country.Store("SE")
	ctx := context.Background()
	c.store, err = store.Open(ctx, store.Options{
		Path: filepath.Join(dir, "db", "gateway.db"), IPv4: netip.MustParsePrefix("100.96.0.0/14"), IPv6: netip.MustParsePrefix("fd00:64::/64"), SealKey: [32]byte{9},
	})
	if err != nil {
		return nil, err
	}
	if c.log, err = audit.Open(audit.Options{Dir: filepath.Join(dir, "audit")}); err != nil {
		return nil, err
	}
	c.engine = policy.NewEngine(policy.EngineOptions{})
	own := c.store.GatewayAddresses()
	c.manager = session.New(session.Config{
		Engine: c.engine, Store: c.store, Audit: c.log, Table: segment.NewTable(own), Gateway: own, ControlPort: 80,
		Locate: func(a netip.Addr) policy.Location {
			return policy.Location{Address: a.String(), Country: c.country.Load().(string)}
		},
		PostureMaxAge: time.Hour, // laptops report once
		AddPeer:       func(session.Connection) error { return nil }, RemovePeer: func([32]byte) error { return nil },
		Gone: func(inner [2]netip.Addr) {
			for _, a := range inner {
				c.proxy.Drop(a)
			}
		},
		SessionOver: func(inner [2]netip.Addr, session string) {
			for _, a := range inner {
				c.proxy.Forget(a, session)
			}
		},
	})
	if err := c.publish(ctx, "first", nil); err != nil {
		return nil, err
	}
	return c, c.start(ctx)
}

func (c *company) start(ctx context.Context) error {
	signer, err := assertion.Open(assertion.Config{KeyFile: filepath.Join(c.dir, "assert.pem"), Issuer: "https://gateway.example"})
	if err != nil {
		return err
	}
	certificate, err := c.authority()
	if err != nil {
		return err
	}
	if c.proxy, err = proxy.New(proxy.Config{
		Session: c.manager, AppByAddr: c.manager.AppByAddr, Certificate: certificate, Signer: signer,
		Timeouts: proxy.Timeouts{Drain: 100 * time.Millisecond},
	}); err != nil {
		return err
	}
	if c.relay, err = media.New(media.Config{
		Sessions: c.manager, AppByAddr: c.manager.AppByAddr, MTU: 1280, Inject: c.inject, Gateway: c.store.GatewayAddresses(),
		Timeouts: media.Timeouts{Drain: 100 * time.Millisecond, Rest: time.Second},
	}); err != nil {
		return err
	}
	ctx, c.stop = context.WithCancel(ctx)
	for _, run := range []func(context.Context) error{c.log.Run, c.manager.Run, c.proxy.Run, c.relay.Run} {
		c.runs.Go(func() {
			if err := run(ctx); err != nil {
				c.errs <- err
			}
		})
	}
	return nil
}

func (c *company) close() error {
	c.stop()
	c.runs.Wait()
	err := errors.Join(c.log.Close(), c.store.Close())
	for {
		select {
		case e := <-c.errs:
			err = errors.Join(err, e)
		default:
			return err
		}
	}
}

// kinds of flows. h2 is two streams of one connection.
var kinds = []string{"http", "h2", "websocket", "tcp", "udp"}

// publish puts the catalogue in force; title makes it a revision of its own, and
// the apps named by without lose their group.
func (c *company) publish(ctx context.Context, title string, without map[string]bool) error {
	rev, err := c.revision(title, without)
	if err != nil {
		return err
	}
	return c.manager.Publish(ctx, rev, "bench")
}

func (c *company) revision(title string, without map[string]bool) (*policy.Revision, error) {
	dir, err := os.MkdirTemp(c.dir, "apps-")
	if err != nil {
		return nil, err
	}
	for _, kind := range kinds {
		for i := range appsOfKind {
			name := fmt.Sprintf("%s%d", kind, i)
			text := map[string]string{
				"http":      "protocol: http\nhosts: [" + name + ".test]\nupstream: http://" + c.apps.Web,
				"h2":        "protocol: http\nhosts: [" + name + ".test]\nupstream: http://" + c.apps.Web,
				"websocket": "protocol: http\nhosts: [" + name + ".test]\nwebsocket: true\nupstream: http://" + c.apps.Web,
				"tcp":       "protocol: tcp\nports: [7000]\nupstream: " + c.apps.TCP,
				"udp":       "protocol: udp\nports: [5004]\nupstream: " + c.apps.UDP,
			}[kind]
			group := "agents"
			if without[name] {
				group = "nobody"
			}
			text = fmt.Sprintf("name: %s\ntitle: %s\n%s\nallow: [127.0.0.1/32]\naccess:\n  - groups: [%s]\n    posture: {host_firewall: pass}\n    countries: [SE, NO]\n%s",
				name, title, text, group, c.more)
			if err := os.WriteFile(filepath.Join(dir, name+".yaml"), []byte(text), 0o600); err != nil {
				return nil, err
			}
		}
	}
	return policy.Load(dir, policy.LoadOptions{})
}

// authority makes certificates for any names, as the internal CA does.
func (c *company) authority() (func([]string) (*tls.Certificate, error), error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	c.roots = x509.NewCertPool()
	c.roots.AddCert(parsed)
	var mu sync.Mutex
	made := map[string]*tls.Certificate{}
	return func(names []string) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		if cert := made[names[0]]; cert != nil {
			return cert, nil
		}
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(2), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}
		der, err := x509.CreateCertificate(rand.Reader, leaf, parsed, key.Public(), key)
		if err != nil {
			return nil, err
		}
		made[names[0]] = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
		return made[names[0]], nil
	}, nil
}
