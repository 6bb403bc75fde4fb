package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// Where the company's apps without an end are, in its namespace.
const (
	filmAddr  = "127.0.0.1:8082"
	floodAddr = "127.0.0.1:8083"
	mediaAddr = "127.0.0.1:8084"
)

// endless serves a film, a feed by WebSocket, a TCP source and a UDP source,
// none of which ends, until ctx does.
func endless(ctx context.Context, failed chan<- error) {
	block := make([]byte, 32<<10)
	mux := http.NewServeMux()
	mux.HandleFunc("/film", func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/feed", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		for c.Write(r.Context(), websocket.MessageBinary, block) == nil {
			continue
		}
	})
	srv := &http.Server{Addr: filmAddr, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { failed <- srv.ListenAndServe() }()
	ln, err := net.Listen("tcp", floodAddr)
	if err != nil {
		failed <- err
		return
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				for {
					if _, err := c.Write(block); err != nil {
						return
					}
				}
			}()
		}
	}()
	addr, err := net.ResolveUDPAddr("udp", mediaAddr)
	if err != nil {
		failed <- err
		return
	}
	pc, err := net.ListenUDP("udp", addr)
	if err != nil {
		failed <- err
		return
	}
	go func() {
		buf := make([]byte, 2048)
		for {
			_, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			go func() {
				for ctx.Err() == nil {
					_, _ = pc.WriteTo(block[:160], from)
					time.Sleep(2 * time.Millisecond)
				}
			}()
		}
	}()
}

// counts are the bytes that came to the laptop at a time.
type counts struct {
	At    int64 // Unix nanoseconds
	Bytes map[string]int64
	Ended map[string]bool
}

// laptopRole is the programs of a laptop that take all they can: a download, a
// WebSocket, a TCP connection and a UDP exchange. They read nothing between the
// words pause and read on stdin, and say all the time what they have.
func laptopRole(ctx context.Context, film, flood, media string) error {
	var paused atomic.Bool
	kinds := []string{"http", "websocket", "tcp", "udp"}
	bytes, ended := map[string]*atomic.Int64{}, map[string]*atomic.Bool{}
	for _, k := range kinds {
		bytes[k], ended[k] = &atomic.Int64{}, &atomic.Bool{}
	}
	take := func(kind string, r io.Reader) {
		defer ended[kind].Store(true)
		buf := make([]byte, 64<<10)
		for {
			for paused.Load() && kind != "udp" {
				time.Sleep(time.Millisecond)
			}
			n, err := r.Read(buf)
			bytes[kind].Add(int64(n))
			if err != nil {
				return
			}
		}
	}
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "film.example.com"},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", film)
		},
	}}
	res, err := client.Get("https://film.example.com/film")
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the film: %s", res.Status)
	}
	go take("http", res.Body)
	ws, _, err := websocket.Dial(ctx, "wss://film.example.com/feed", &websocket.DialOptions{HTTPClient: client})
	if err != nil {
		return err
	}
	ws.SetReadLimit(-1)
	go take("websocket", websocket.NetConn(ctx, ws, websocket.MessageBinary))
	tcp, err := net.Dial("tcp", flood)
	if err != nil {
		return err
	}
	go take("tcp", tcp)
	udp, err := net.Dial("udp", media)
	if err != nil {
		return err
	}
	if _, err := udp.Write([]byte("play")); err != nil {
		return err
	}
	go take("udp", udp)
	go func() {
		words := bufio.NewScanner(os.Stdin)
		for words.Scan() {
			paused.Store(words.Text() == "pause")
		}
		os.Exit(0) // the test is over
	}()
	out := json.NewEncoder(os.Stdout)
	for ctx.Err() == nil {
		c := counts{At: time.Now().UnixNano(), Bytes: map[string]int64{}, Ended: map[string]bool{}}
		for _, k := range kinds {
			c.Bytes[k], c.Ended[k] = bytes[k].Load(), ended[k].Load()
		}
		if err := out.Encode(c); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

// TestNothingPassesAfterALapse stops the gateway for longer than a lease while
// everything that can be queued is, lets the login end meanwhile, and counts
// what reaches the laptop once the gateway runs again: nothing.
func TestNothingPassesAfterALapse(t *testing.T) {
	need(t, "ip", "wireguard-go", "wg", "curl", "openssl", "jq", "dig")
	for _, mode := range []string{"userspace", "tun"} { // tun: the kernel's TCP and splice
		t.Run(mode, func(t *testing.T) {
			l := newLab(t, "tunnel: {mode: "+mode+"}", "session: {lifetime: 35s}")
			for name, text := range map[string]string{
				"film":  "protocol: http\nhosts: [film.example.com]\nupstream: http://" + filmAddr + "\nwebsocket: true\n",
				"flood": "protocol: tcp\nports: [7000]\nupstream: " + floodAddr + "\n",
				"media": "protocol: udp\nports: [5004]\nupstream: " + mediaAddr + "\n",
			} {
				l.write("apps/"+name+".yaml", "name: "+name+"\n"+text+"allow: [127.0.0.1/32]\naccess: [{groups: [sales]}]\n")
			}
			l.hand(walk(t, l.admin("invite", "--name", "by-hand")))
			lapse(t, l)
		})
	}
}

func lapse(t *testing.T, l *lab) {
	var sessions struct {
		Items []struct {
			ExpiresAt time.Time `json:"expires_at"`
		}
	}
	var apps struct {
		Items []struct {
			Name      string
			Addresses []string
		}
	}
	decode := func(v any, args ...string) {
		t.Helper()
		if err := json.Unmarshal([]byte(l.admin(append(args, "--json")...)), v); err != nil {
			t.Fatal(err)
		}
	}
	decode(&sessions, "sessions", "list")
	decode(&apps, "apps", "list")
	if len(sessions.Items) != 1 {
		t.Fatalf("sessions: %+v", sessions)
	}
	at := map[string]string{}
	for _, a := range apps.Items {
		at[a.Name] = a.Addresses[0]
	}
	l.hand(`wg set pv0 peer "$(jq -r .gateway.tunnel_key connected.json)" allowed-ips 100.96.0.0/16
ip route replace 100.96.0.0/16 dev pv0`)
	said, say := l.programs(at["film"]+":443", at["flood"]+":7000", at["media"]+":5004")
	gateway := l.gatewayPID()

	end := sessions.Items[0].ExpiresAt
	if left := time.Until(end); left < 8*time.Second {
		t.Fatalf("%s are left of the login: too little on this machine", left)
	}
	time.Sleep(time.Until(end) - 6*time.Second)
	say("pause") // all queues on the way fill
	time.Sleep(3 * time.Second)
	if err := syscall.Kill(gateway, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	defer syscall.Kill(gateway, syscall.SIGCONT)
	time.Sleep(27 * time.Second)
	say("read") // the laptop asks for more; the gateway is to hear of it when it runs
	time.Sleep(time.Until(stopped.Add(31 * time.Second)))
	resumed := time.Now()
	if err := syscall.Kill(gateway, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	time.Sleep(4 * time.Second)

	before, after := l.counted(said, resumed)
	for kind, n := range before.Bytes {
		t.Logf("%s: %d bytes before, %d after the lapse", kind, n, after.Bytes[kind]-n)
		if n == 0 {
			t.Errorf("%s: nothing came before", kind)
		}
		if after.Bytes[kind] != n {
			t.Errorf("%s: %d bytes passed on an expired lease", kind, after.Bytes[kind]-n)
		}
	}
	// A WebSocket's unanswered ping may end it before the cut does.
	var open struct{ Items []struct{ App string } }
	if decode(&open, "flows", "list"); len(open.Items) != 0 {
		t.Errorf("still open: %+v", open.Items)
	}
	if log := l.admin("audit", "tail", "-n", "0"); !strings.Contains(log, `"kind":"flow_cut"`) || !strings.Contains(log, `"reason":"session_expired"`) {
		t.Error("the log has no cut")
	}
	if log, err := os.ReadFile(l.gwLog); err != nil || !strings.Contains(string(log), "the gateway stood still") {
		t.Errorf("the gateway does not say that it stood still: %v", err)
	}
}

// programs starts the laptop's, until the test ends. They say into a file what
// they have, and take words.
func (l *lab) programs(film, flood, media string) (said string, say func(string)) {
	l.t.Helper()
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(l.dir, "laptop.log"))
	if err != nil {
		l.t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", l.laptop, "env", roleEnv+"=laptop", self, film, flood, media)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	words, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = words.Close(); _ = cmd.Wait(); _ = out.Close() })
	return out.Name(), func(word string) {
		l.t.Helper()
		if _, err := io.WriteString(words, word+"\n"); err != nil {
			l.t.Fatal(err)
		}
	}
}

// gatewayPID finds the gateway among the company's programs.
func (l *lab) gatewayPID() int {
	l.t.Helper()
	for _, pid := range strings.Fields(run(l.t, "ip", "netns", "pids", l.company)) {
		if exe, err := os.Readlink("/proc/" + pid + "/exe"); err == nil && exe == l.gateway {
			n, err := strconv.Atoi(pid)
			if err != nil {
				l.t.Fatal(err)
			}
			return n
		}
	}
	l.t.Fatal("the gateway does not run")
	return 0
}

// counted are the last counts before a time, and the last of all.
func (l *lab) counted(path string, at time.Time) (before, last counts) {
	l.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		l.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var c counts
		if json.Unmarshal([]byte(line), &c) != nil {
			continue // the last one, half written
		}
		if last = c; c.At < at.UnixNano() {
			before = c
		}
	}
	if last.At < at.Add(time.Second).UnixNano() {
		l.t.Fatalf("the laptop's programs ended early: %+v", last)
	}
	return before, last
}
