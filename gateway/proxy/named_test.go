package proxy_test

import (
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/proxy"
)

// A connection to an app, of whichever kind, is kept between requests for as long
// as Timeouts.UpstreamIdle says.
func TestUpstreamIdle(t *testing.T) {
	for _, kind := range []string{"http", "https", "h2"} {
		t.Run(kind, func(t *testing.T) {
			m, yaml := newMailboxes(t, kind)
			w := newWorld(t, []string{yaml}, map[string]string{"owa": m.URL}, func(c *proxy.Config) { c.Timeouts.UpstreamIdle = 50 * time.Millisecond })
			if _, body := get(t, w.client(false), "https://owa.test/", "Authorization", "asa"); body != "mailbox of asa" {
				t.Fatalf("%q", body)
			}
			for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				open, made := m.open()
				if made == 1 && open == 0 {
					return
				}
				if time.Now().After(end) {
					t.Fatalf("%d of %d connections are still open", open, made)
				}
			}
		})
	}
}
