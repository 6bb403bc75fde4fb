//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/portvakt/portvakt/deploy/bench/output"
	"github.com/portvakt/portvakt/deploy/systemd"
)

const (
	host       = "bench.test"        // the app's name
	hostStrict = "strict.bench.test" // the same app's, with every record on the disk first
	startLimit = 20 * time.Second
)

// stand is everything that runs: an app, and one proxy a way.
type stand struct {
	dir      string
	profiles string
	addr     map[string]string // of each way's TLS listener
	control  string            // of ours
	children []*exec.Cmd
	groups   map[string]int // process group of each way
	said     said
	yields   bool // the load and the app run only where nothing else wants to
}

// said keeps the first of what children complain of.
type said struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if room := 4<<10 - s.buf.Len(); room > 0 {
		s.buf.Write(b[:min(room, len(b))])
	}
	return len(b), nil
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// setting is what a child needs to know.
type setting struct {
	Dir, App, Listen, Control string
	// Strict is where ours listens for the app whose records must be on the disk.
	Strict string
}

func (s setting) certificate() (cert, key string) {
	return filepath.Join(s.Dir, "cert.pem"), filepath.Join(s.Dir, "key.pem")
}

// start makes the app and the proxies, and waits until each of them answers.
func start(ctx context.Context, o options) (_ *stand, err error) {
	dir, err := os.MkdirTemp("", "bench-proxy")
	if err != nil {
		return nil, err
	}
	s := &stand{dir: dir, profiles: o.profiles, addr: map[string]string{}, groups: map[string]int{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	ports, err := freePorts(7)
	if err != nil {
		return nil, err
	}
	set := setting{Dir: dir, App: ports[0], Control: ports[1]}
	s.control = set.Control
	if err := makeCertificate(set); err != nil {
		return nil, err
	}
	for i, way := range slices.Concat(ways, []string{wayStrict}) {
		s.addr[way] = ports[2+i]
	}
	set.Strict = s.addr[wayStrict]
	if err := s.startNginx(ctx, "app", appConfig(set)); err != nil {
		return nil, err
	}
	if err := s.startNginx(ctx, wayNginx, nginxConfig(set, s.addr[wayNginx])); err != nil {
		return nil, err
	}
	if err := s.startCaddy(ctx, set); err != nil {
		return nil, err
	}
	for _, way := range []string{wayOurs, wayBare} {
		set := set
		set.Listen = s.addr[way]
		if err := s.startRole(ctx, way, set); err != nil {
			return nil, err
		}
	}
	for way := range s.addr {
		if err := s.wait(ctx, way); err != nil {
			return nil, fmt.Errorf("waiting for %s: %w; the programs said:\n%s", way, err, s.said.String())
		}
	}
	return s, nil
}

// freePorts returns loopback addresses nobody listens on.
func freePorts(n int) (addrs []string, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // all of them at the end, so that they differ
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

// makeCertificate makes the one that all ways show.
func makeCertificate(set setting) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host, hostStrict}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	certFile, keyFile := set.certificate()
	return errors.Join(
		os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600),
	)
}

const nginxFrame = `%[3]sdaemon off;
pid %[1]s/pid;
error_log stderr error;
worker_processes auto;
events { worker_connections 1024; }
http {
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
%[2]s}
`

func appConfig(set setting) string {
	return fmt.Sprintf(`  default_type text/plain;
  sendfile on; tcp_nopush on; open_file_cache max=10;
  server { listen %s; root %s/app/pages; }
`, set.App, set.Dir)
}

func nginxConfig(set setting, listen string) string {
	cert, key := set.certificate()
	return fmt.Sprintf(`  upstream app { server %s; keepalive 128; keepalive_requests 1000000000; }
  server {
    listen %s ssl; ssl_certificate %s; ssl_certificate_key %s;
    location / {
      proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
    }
  }
`, set.App, listen, cert, key)
}

func (s *stand) startNginx(ctx context.Context, name, config string) error {
	dir := filepath.Join(s.dir, name)
	pages := filepath.Join(dir, "pages")
	if err := os.MkdirAll(pages, 0o755); err != nil {
		return err
	}
	user := "" // of the workers
	if os.Geteuid() == 0 {
		user = "user root;\n" // another one could not get at the pages
	}
	file := filepath.Join(dir, "nginx.conf")
	if err := errors.Join(
		os.WriteFile(filepath.Join(pages, "100"), bytes.Repeat([]byte("p"), 100), 0o644),
		os.WriteFile(filepath.Join(pages, "16k"), bytes.Repeat([]byte("p"), 16<<10), 0o644),
		os.WriteFile(file, fmt.Appendf(nil, nginxFrame, dir, config, user), 0o600),
	); err != nil {
		return err
	}
	return s.run(ctx, name, "nginx", "-p", dir, "-c", file, "-e", "stderr")
}

func (s *stand) startCaddy(ctx context.Context, set setting) error {
	cert, key := set.certificate()
	_, port, err := net.SplitHostPort(s.addr[wayCaddy])
	if err != nil {
		return err
	}
	file := filepath.Join(s.dir, "Caddyfile")
	if err := os.WriteFile(file, fmt.Appendf(nil, `{
	admin off
	auto_https off
}
https://:%s {
	bind 127.0.0.1
	tls %s %s
	reverse_proxy http://%s
}
`, port, cert, key, set.App), 0o600); err != nil {
		return err
	}
	return s.run(ctx, wayCaddy, "caddy", "run", "--adapter", "caddyfile", "--config", file)
}

func (s *stand) startRole(ctx context.Context, role string, set setting) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	arg, err := json.Marshal(set)
	if err != nil {
		return err
	}
	return s.run(ctx, role, self, role, string(arg))
}

func (s *stand) run(ctx context.Context, name string, argv ...string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = io.Discard, &s.said
	cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+s.dir, "XDG_CONFIG_HOME="+s.dir, "HOME="+s.dir)
	if name == wayOurs || name == wayBare { // which gains by it as well
		cmd.Env = append(cmd.Env, systemd.GatewayEnvironment()...)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", argv[0], err)
	}
	s.children = append(s.children, cmd)
	s.groups[name] = cmd.Process.Pid
	return ctx.Err()
}

// cpu is what the processes of a way have used so far.
func (s *stand) cpu(way string) (used time.Duration, err error) {
	err = s.each(way, func(file string, stat []string) error {
		for _, ticks := range stat[11:13] { // utime and stime, in hundredths of a second
			n, err := strconv.Atoi(ticks)
			if err != nil {
				return fmt.Errorf("reading %s: %w", file, err)
			}
			used += time.Duration(n) * 10 * time.Millisecond
		}
		return nil
	})
	return used, err
}

// processes are those of a way.
func (s *stand) processes(way string) (pids []int, err error) {
	err = s.each(way, func(file string, _ []string) error {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		pids = append(pids, pid)
		return err
	})
	return pids, err
}

// each calls fn with what /proc says of each process of a way, from its state on
// (proc_pid_stat(5)).
func (s *stand) each(way string, fn func(file string, stat []string) error) error {
	group, ok := s.groups[way]
	if !ok {
		return fmt.Errorf("%s does not run", way)
	}
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return err
	}
	for _, file := range all {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(b), ") ") // the name before, in brackets, may hold anything
		if f := strings.Fields(rest); len(f) >= 13 && f[2] == strconv.Itoa(group) {
			if err := fn(file, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// close ends everything and takes the directory away.
func (s *stand) close() error {
	for _, c := range s.children {
		_ = c.Process.Signal(syscall.SIGTERM)
	}
	for _, c := range s.children {
		kill := time.AfterFunc(5*time.Second, func() { _ = c.Process.Kill() })
		_ = c.Wait() // how it ended is nobody's business
		kill.Stop()
	}
	return os.RemoveAll(s.dir)
}

// wait returns when a way answers with the page.
func (s *stand) wait(ctx context.Context, way string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		out, err := exec.CommandContext(ctx, "wrk", append(s.wrkArgs(way, loads[0], 0), "-d1s")...).CombinedOutput()
		if err == nil {
			if _, err = output.Wrk(string(out)); err == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (s *stand) wrkArgs(way string, l load, threads int) []string {
	name := host
	if way == wayStrict {
		name = hostStrict
	}
	return []string{
		"-t", strconv.Itoa(max(1, threads)), "-c", strconv.Itoa(l.conns), "-H", "Host: " + name, "https://" + s.addr[way] + l.path,
	}
}

// wrk loads a way and returns the requests per second. Connections pause between
// an answer and the next request, if they are to.
func (s *stand) wrk(ctx context.Context, o options, way string, l load, pause time.Duration) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(o.seconds)*time.Second+startLimit)
	defer cancel()
	args := append(s.wrkArgs(way, l, min(2, l.conns)), "-d", strconv.Itoa(o.seconds)+"s")
	if pause > 0 {
		file := filepath.Join(s.dir, "pause.lua")
		script := fmt.Sprintf("function delay() return %d end\n", max(1, pause.Milliseconds()))
		if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
			return 0, err
		}
		args = append(args, "-s", file)
	}
	if s.profiles != "" && way == wayOurs {
		done := make(chan error, 1)
		go func() { done <- s.profile(ctx, o, l) }()
		defer func() {
			if err := <-done; err != nil {
				fmt.Fprintln(os.Stderr, "profiling:", err)
			}
		}()
	}
	program := "wrk"
	if s.yields { // as all threads that it starts
		program, args = "chrt", append([]string{"--idle", "0", "wrk"}, args...)
	}
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("wrk: %w: %.300s", err, out)
	}
	return output.Wrk(string(out))
}

// lag is what the gateway says of how long requests were with it since it was
// asked the last time.
type lag struct {
	Count    uint64
	P50, P99 float64 // microseconds
}

func (s *stand) lag(ctx context.Context) (l lag, err error) {
	b, err := s.ask(ctx, "/lags")
	if err != nil {
		return l, err
	}
	return l, json.Unmarshal(b, &l)
}

func (s *stand) profile(ctx context.Context, o options, l load) error {
	b, err := s.ask(ctx, "/debug/pprof/profile?seconds="+strconv.Itoa(o.seconds))
	if err != nil {
		return err
	}
	name := strings.NewReplacer(" ", "-", ",", "").Replace(l.name)
	return os.WriteFile(filepath.Join(o.profiles, name+".pprof"), b, 0o600)
}

func (s *stand) ask(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.control+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", path, res.Status)
	}
	return io.ReadAll(res.Body)
}
