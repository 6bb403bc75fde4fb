package loopback_test

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/portvakt/portvakt/agent/loopback"
)

// A page in the worker's browser can post lines to any loopback port. None of
// them reaches a TCP app.
func TestPagesDoNotSpeakToTCPApps(t *testing.T) {
	g := newGateway(t)
	s := serve(t, loopback.Config{Dial: g.dial}, desk)
	port := portOf(t, s, "desk")
	_, number, _ := net.SplitHostPort(port)
	post := func(host, headers string) string {
		return "POST / HTTP/1.1\r\nHost: " + host + "\r\n" + headers + "Content-Length: 12\r\n\r\nwhoami\nlist\n"
	}
	for name, sent := range map[string]string{
		"a form of another site":     post(port, "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n"),
		"a page without an origin":   post(port, "Origin: null\r\n"),
		"an image":                   "GET /%0Aquit HTTP/1.1\r\nHost: " + port + "\r\nSec-Fetch-Site: cross-site\r\n\r\n",
		"a rebound name":             post("evil.example:"+number, ""),
		"a WebSocket":                "GET / HTTP/1.1\r\nHost: localhost:" + number + "\r\nUpgrade: websocket\r\nOrigin: https://evil.example\r\n\r\n",
		"two origins":                post(port, "Origin: http://"+port+"\r\nOrigin: https://evil.example\r\n"),
		"a head without an end":      "GET /" + strings.Repeat("a", 40<<10),
		"a method of the page's own": strings.Replace(post("evil.example:"+number, ""), "POST", "QUERY", 1),
		"a method in lower case":     strings.Replace(post(port, "Origin: null\r\n"), "POST", "patch", 1),
		"an odd method":              strings.Replace(post("evil.example:"+number, ""), "POST", "!#$%&'*+-.^_`|~09az", 1),
		"a long target":              strings.Replace(post("evil.example:"+number, ""), "POST /", "QUERY /"+strings.Repeat("a", 9000), 1),
		"a long method":              strings.Replace(post("evil.example:"+number, ""), "POST", strings.Repeat("M", 9000), 1),
		"a garbled head":             "POST / HTTP/1.1\r\nHost: " + port + "\r\n: x\r\n\r\nwhoami\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, "tcp", port)
			// In two parts: the look must not depend on how it is cut up.
			cut := min(len(sent), 30)
			if strings.HasPrefix(sent, "MMM") {
				cut = 4 << 10 // of which a browser's first segment holds more
			}
			if _, err := io.WriteString(c, sent[:cut]); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
			_, _ = io.WriteString(c, sent[cut:]) // it may be cut by now
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			if got, err := io.ReadAll(c); len(got) > 0 || err == nil {
				t.Errorf("the app answered %q, then %v", got, err)
			}
		})
	}
	for name, sent := range map[string]string{
		"a command like a method": "GET ticket\n",
		"a program of the worker": "GET / HTTP/1.1\r\nHost: " + port + "\r\n\r\n",
		"a page opened by hand":   "GET / HTTP/1.1\r\nHost: localhost:" + number + "\r\nSec-Fetch-Site: none\r\n\r\n",
		"an empty line":           "\n",
		"words":                   "EHLO laptop here\n",
		"a word and a path":       "open /srv/x\n",
		"almost a version":        "GET / HTTP/2.0\n",
		"not ASCII":               "sök å\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, "tcp", port)
			if _, err := io.WriteString(c, sent); err != nil {
				t.Fatal(err)
			}
			want := ""
			for line := range strings.Lines(sent) {
				want += "desk:" + line
			}
			got := make([]byte, len(want))
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
				t.Errorf("the app answered %q, then %v; want %q", got, err, want)
			}
		})
	}
	const webSocket = "GET / HTTP/1.1\r\nHost: desk.example.test:7000\r\nUpgrade: websocket\r\nOrigin: https://evil.example\r\n\r\n"
	t.Run("a WebSocket through the proxy", func(t *testing.T) {
		c := connectTo(t, s, "desk.example.test:7000")
		_, _ = io.WriteString(c, webSocket)
		wantCut(t, c)
	})
	for name, sent := range map[string]string{
		"a page": webSocket,
		"a line": "ping\n",
	} {
		for road, open := range map[string]string{
			"behind a CONNECT": "CONNECT desk.example.test:7000 HTTP/1.1\r\nHost: desk.example.test:7000\r\n\r\n",
			"through SOCKS5":   "\x05\x01\x00\x05\x01\x00\x03\x11desk.example.test\x1b\x58",
		} {
			t.Run(name+" "+road, func(t *testing.T) {
				c := dial(t, "tcp", proxyOf(s))
				_, _ = io.WriteString(c, open+sent) // in one segment
				_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
				if name == "a page" {
					got, err := io.ReadAll(c)
					if err == nil || strings.Contains(string(got), "desk:") {
						t.Errorf("the app answered %q, then %v", got, err)
					}
					return
				}
				for line := bufio.NewReader(c); ; {
					got, err := line.ReadString('\n')
					if strings.HasSuffix(got, "desk:ping\n") {
						return
					}
					if err != nil {
						t.Fatalf("the app's answer does not come: %v", err)
					}
				}
			})
		}
	}
}
