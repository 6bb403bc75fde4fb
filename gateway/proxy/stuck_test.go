package proxy_test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/proxy"
)

// An app that reads nothing of an upload holds the exchange no longer than it
// may take to answer, also when the device has left meanwhile.
func TestAnAppThatReadsNothing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // and with it what nobody accepted
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": "http://" + l.Addr().String()}, func(c *proxy.Config) { c.Timeouts.ResponseHeader = 300 * time.Millisecond })
	c := w.tls("crm.test")
	fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: crm.test\r\nContent-Length: 100000000\r\n\r\n")
	_ = c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	for b := make([]byte, 64<<10); ; {
		if _, err := c.Write(b); err != nil {
			break
		}
	}
	_ = c.NetConn().(*net.TCPConn).SetLinger(0)
	_ = c.NetConn().Close()
	for end := time.Now().Add(10 * time.Second); w.manager.Counts().Flows != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the exchange goes on, with nobody at either end")
		}
	}
}
