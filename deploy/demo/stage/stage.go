// Package stage sets the demo up: a directory that holds everything, the
// configuration files, and every program as a process of its own. Nothing of
// it is left when it comes down.
package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/portvakt/portvakt/deploy/demo/geoip"
	"github.com/portvakt/portvakt/deploy/demo/idp"
	"github.com/portvakt/portvakt/deploy/demo/router"
)

// The people of the demo. Their passwords are printed: they open nothing else.
var (
	Anna = idp.Person{Name: "Anna Alm", Email: "anna@demo.example", Password: "anna-sells", Groups: []string{"sales"}}
	Ben  = idp.Person{Name: "Ben Berg", Email: "ben@demo.example", Password: "ben-supports", Groups: []string{"support"}}
)

// Where the laptops are. The refused address lies in a country that the apps'
// policy does not name.
var (
	AddressAnna    = netip.MustParseAddr("127.10.0.1")
	AddressBen     = netip.MustParseAddr("127.20.0.1")
	AddressRefused = netip.MustParseAddr("127.66.0.1")

	countries = map[netip.Prefix]string{
		netip.MustParsePrefix("127.10.0.0/16"): "SE",
		netip.MustParsePrefix("127.20.0.0/16"): "FI",
		netip.MustParsePrefix("127.66.0.0/16"): "US",
	}
)

// startLimit bounds each wait for a program to be ready.
const startLimit = 20 * time.Second

// Config says what to run.
type Config struct {
	// Bin holds portvakt-gateway and portvakt-agent.
	Bin string
	// Self is the demo's own binary, which plays identity provider and apps.
	Self string
	// Progress gets one line for each thing that is done; nil means silence.
	Progress io.Writer
}

// Stage is the running demo.
type Stage struct {
	Dir string
	// URL is the gateway's public URL, Health its loopback listener.
	URL, Health string
	// GatewayConfig is gateway.yaml, Policy the directory of the app files.
	GatewayConfig, Policy string
	// CA is the PEM file of the gateway's internal CA.
	CA        string
	Issuer    string
	Anna, Ben *Laptop

	cfg   Config
	ports ports

	mu        sync.Mutex
	processes []*Process // in the order of their start; guarded by mu
	down      bool       // guarded by mu; endings are expected from then on
	fallen    chan error // holds the first unexpected ending

	routers     sync.WaitGroup
	stopRouters context.CancelFunc
}

// ports are the loopback ports of one run.
type ports struct {
	IdP, CRM, Payments, Desk, Voice, Public, Tunnel, Health, ProxyAnna, ProxyBen int
}

// Up starts everything and returns when it is ready: apps, identity provider
// and gateway answer, both laptops are enrolled and connected. When it fails,
// what was started has been stopped again.
func Up(ctx context.Context, cfg Config) (_ *Stage, err error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	dir, err := os.MkdirTemp("", "portvakt-demo-")
	if err != nil {
		return nil, fmt.Errorf("making a directory for the demo: %w", err)
	}
	background, cancel := context.WithCancel(context.Background())
	s := &Stage{Dir: dir, cfg: cfg, fallen: make(chan error, 1), stopRouters: cancel}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.logs(), s.Down())
		}
	}()
	if err := s.layOut(); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{
		s.startIdP, s.startGateway, s.startApps,
		func(ctx context.Context) error { return s.startLaptops(ctx, background) },
	} {
		if err := step(ctx); err != nil {
			select {
			case fell := <-s.fallen: // the cause, when a program ended
				return nil, fell
			default:
				return nil, err
			}
		}
	}
	return s, nil
}

// Fallen delivers an error when a program ends that should not.
func (s *Stage) Fallen() <-chan error { return s.fallen }

// Down stops every program in the reverse order of its start and removes the
// directory. It may be called more than once.
func (s *Stage) Down() error {
	s.mu.Lock()
	s.down = true
	running := slices.Clone(s.processes)
	s.mu.Unlock()
	var all []error
	for _, p := range slices.Backward(running) {
		all = append(all, p.stop())
	}
	s.stopRouters()
	s.routers.Wait()
	return errors.Join(append(all, os.RemoveAll(s.Dir))...)
}

// Processes lists what was started, in order.
func (s *Stage) Processes() []*Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.processes)
}

// logs returns the last lines of every program as an error to go with another.
func (s *Stage) logs() error {
	if t := s.Logs(8); t != "" {
		return errors.New("the programs' last lines:\n" + t)
	}
	return nil
}

// Logs returns the last n lines of every program.
func (s *Stage) Logs(n int) string {
	var b strings.Builder
	for _, p := range s.Processes() {
		if t := p.Tail(n); t != "" {
			fmt.Fprintf(&b, "--- %s\n%s\n", p.Name, t)
		}
	}
	return b.String()
}

func (s *Stage) say(format string, args ...any) { fmt.Fprintf(s.cfg.Progress, format+"\n", args...) }

func (s *Stage) start(name string, argv ...string) (*Process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, errors.New("the demo is coming down")
	}
	p, err := startProcess(name, filepath.Join(s.Dir, "logs", name+".log"), argv, s.ended)
	if err != nil {
		return nil, err
	}
	s.processes = append(s.processes, p)
	return p, nil
}

// Program returns the running program of that name: idp, gateway, an app, or
// agent-anna and agent-ben.
func (s *Stage) Program(name string) (*Process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range slices.Backward(s.processes) {
		if p.Name == name {
			return p, nil
		}
	}
	return nil, fmt.Errorf("there is no program %s", name)
}

// Kill ends a program as a crash would, and it is no surprise that it did.
func (s *Stage) Kill(name string) error {
	p, err := s.Program(name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	p.expected = true
	s.mu.Unlock()
	_ = p.cmd.Process.Kill()
	<-p.done
	return nil
}

// Stop asks a program to end in order, and it is no surprise that it does. The
// channel is closed when it has.
func (s *Stage) Stop(name string) (ended <-chan struct{}, err error) {
	p, err := s.Program(name)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	p.expected = true
	s.mu.Unlock()
	return p.done, p.cmd.Process.Signal(syscall.SIGTERM)
}

// Again starts a program that was killed or stopped, as it was.
func (s *Stage) Again(name string) error {
	p, err := s.Program(name)
	if err != nil {
		return err
	}
	_, err = s.start(name, p.cmd.Args...)
	return err
}

// ended is called by each process's goroutine.
func (s *Stage) ended(p *Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down || p.expected {
		return
	}
	select {
	case s.fallen <- p.died():
	default:
	}
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// layOut takes ports and writes every file that the gateway reads.
func (s *Stage) layOut() error {
	free, err := freePorts(10)
	if err != nil {
		return err
	}
	s.ports = ports{free[0], free[1], free[2], free[3], free[4], free[5], free[6], free[7], free[8], free[9]}
	s.URL = "https://" + loopback(s.ports.Public)
	s.Health = "http://" + loopback(s.ports.Health)
	s.Issuer = "http://" + loopback(s.ports.IdP) + "/dex"
	s.GatewayConfig = filepath.Join(s.Dir, "gateway.yaml")
	s.Policy = filepath.Join(s.Dir, "apps")
	s.CA = filepath.Join(s.Dir, "data", "ca", "root.pem")
	for _, d := range []string{"logs", "apps"} {
		if err := os.Mkdir(filepath.Join(s.Dir, d), 0o700); err != nil {
			return err
		}
	}
	if err := geoip.Write(filepath.Join(s.Dir, "geo.mmdb"), countries); err != nil {
		return err
	}
	if err := s.WriteCatalogue(); err != nil {
		return err
	}
	return replaceFile(s.GatewayConfig, s.gatewayFile())
}

// Catalogue is a stage whose programs are not started: only its policy files
// can be written.
func Catalogue(dir string) *Stage {
	return &Stage{Dir: dir, Policy: dir, ports: ports{CRM: 1, Payments: 2, Desk: 3, Voice: 4}}
}

// WriteCatalogue writes the app files as they are at the start.
func (s *Stage) WriteCatalogue() error {
	for name, text := range s.appFiles() {
		if err := s.WritePolicy(name, text); err != nil {
			return err
		}
	}
	return nil
}

// WritePolicy puts a file into the policy directory, or replaces it.
func (s *Stage) WritePolicy(name, text string) error {
	if err := replaceFile(filepath.Join(s.Policy, name), text); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}

// RemovePolicy removes a file from the policy directory.
func (s *Stage) RemovePolicy(name string) error { return os.Remove(filepath.Join(s.Policy, name)) }

func (s *Stage) startIdP(ctx context.Context) error {
	if _, err := s.start("idp", s.cfg.Self, "idp", "--listen", loopback(s.ports.IdP)); err != nil {
		return err
	}
	if err := s.wait(ctx, "the identity provider", answering(s.Issuer+"/.well-known/openid-configuration")); err != nil {
		return err
	}
	s.say("identity provider (Dex)   %s", s.Issuer)
	return nil
}

func (s *Stage) startGateway(ctx context.Context) error {
	if _, err := s.start("gateway", filepath.Join(s.cfg.Bin, "portvakt-gateway"), "serve", "--config", s.GatewayConfig); err != nil {
		return err
	}
	if err := s.wait(ctx, "the gateway", answering(s.Health+"/readyz")); err != nil {
		return err
	}
	s.say("gateway                   %s, WireGuard on UDP %s", s.URL, loopback(s.ports.Tunnel))
	return nil
}

func (s *Stage) startApps(ctx context.Context) error {
	web := []string{"--ca", s.CA, "--gateway", s.URL}
	for _, a := range []struct {
		name string
		port int
		args []string
	}{
		{"crm", s.ports.CRM, web},
		{"payments", s.ports.Payments, web},
		{"desk", s.ports.Desk, nil},
		{"voice", s.ports.Voice, nil},
	} {
		if _, err := s.start(a.name, append([]string{s.cfg.Self, a.name, "--listen", loopback(a.port)}, a.args...)...); err != nil {
			return err
		}
		if a.name != "voice" {
			if err := s.wait(ctx, a.name, listening(loopback(a.port))); err != nil {
				return err
			}
		}
		s.say("app %-21s %s", a.name, loopback(a.port))
	}
	return nil
}

// startLaptops enrols and connects both laptops at the same time. The routers
// live until Down.
func (s *Stage) startLaptops(ctx, background context.Context) error {
	s.Anna = s.laptop(Anna, "anna", AddressAnna, s.ports.ProxyAnna)
	s.Ben = s.laptop(Ben, "ben", AddressBen, s.ports.ProxyBen)
	errs := make(chan error, 2)
	for _, l := range []*Laptop{s.Anna, s.Ben} {
		go func() { errs <- s.startLaptop(ctx, background, l) }()
	}
	return errors.Join(<-errs, <-errs)
}

func (s *Stage) laptop(p idp.Person, name string, home netip.Addr, proxy int) *Laptop {
	l := NewLaptop(p, s.cfg.Bin, filepath.Join(s.Dir, name))
	l.Home, l.Proxy = home, loopback(proxy)
	return l
}

func (s *Stage) startLaptop(ctx, background context.Context, l *Laptop) error {
	if err := l.Furnish(); err != nil {
		return fmt.Errorf("furnishing %s's laptop: %w", l.name, err)
	}
	var err error
	l.Router, err = router.Listen(router.Config{
		Listen:  netip.MustParseAddrPort("127.0.0.1:0"),
		Gateway: netip.MustParseAddrPort(loopback(s.ports.Tunnel)),
		Address: l.Home,
	})
	if err != nil {
		return err
	}
	s.routers.Go(func() {
		if err := l.Router.Run(background); err != nil {
			select {
			case s.fallen <- fmt.Errorf("the home router of %s: %w", l.name, err):
			default:
			}
		}
	})
	code, err := s.Invite(ctx, l.name+"-laptop")
	if err != nil {
		return err
	}
	if _, err := l.Agent(ctx, "enroll", s.URL, code); err != nil {
		return err
	}
	l.agent, err = s.start("agent-"+l.name, l.bin, "run", "--state", l.State,
		"--posture-root", l.Root, "--proxy-addr", l.Proxy, "--endpoint", l.Router.Addr().String())
	if err != nil {
		return err
	}
	if err := s.wait(ctx, l.name+"'s agent to connect", l.connected); err != nil {
		return err
	}
	s.say("%-25s enrolled and connected from %s (%s), proxy %s", l.name+"'s laptop", l.Home, s.Country(l.Home), l.Proxy)
	return nil
}

// Country is where an address of the demo lies.
func (s *Stage) Country(a netip.Addr) string {
	for p := range maps.Keys(countries) {
		if p.Contains(a) {
			return countries[p]
		}
	}
	return "unknown"
}

// wait waits for ready, but not for a program that has ended.
func (s *Stage) wait(ctx context.Context, what string, ready func(context.Context) error) error {
	return waitFor(ctx, startLimit, what, func(ctx context.Context) error {
		select {
		case fell := <-s.fallen:
			s.fallen <- fell // capacity 1, and only the first ending is sent
			return errFallen
		default:
			return ready(ctx)
		}
	})
}

var errFallen = errors.New("a program ended by itself")

// answering returns nil when a GET of u is answered with 200.
func answering(u string) func(context.Context) error {
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
			return fmt.Errorf("%s: %s: %s", u, resp.Status, body)
		}
		return nil
	}
}

// freePorts finds loopback ports that are free for TCP and UDP. They lie below
// the range that systems take for outgoing connections, so that nothing takes
// them by chance before they are used.
func freePorts(n int) ([]int, error) {
	var out []int
	for try := 0; len(out) < n && try < 2000; try++ {
		port := 20000 + randomBelow(12000)
		if slices.Contains(out, port) {
			continue
		}
		t, err := net.Listen("tcp", loopback(port))
		if err != nil {
			continue
		}
		u, err := net.ListenPacket("udp", loopback(port))
		t.Close()
		if err != nil {
			continue
		}
		u.Close()
		out = append(out, port)
	}
	if len(out) < n {
		return nil, errors.New("there are not enough free ports on 127.0.0.1 between 20000 and 32000")
	}
	return out, nil
}

// Bin is the directory of the two binaries.
func (s *Stage) Bin() string { return s.cfg.Bin }
