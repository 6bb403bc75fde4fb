package proxy_test

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// A request of which nobody will ask its Flow any more, as it waits in
// http.Transport for its turn to be written, does not leave while the gateway has
// not decided everything again after a lapse.
func TestNoTurnComesBeforeAllIsDecided(t *testing.T) {
	for _, kind := range []string{"https", "h2"} {
		for name, lines := range map[string]string{"request": "", "websocket": upgrading} {
			t.Run(kind+" "+name, func(t *testing.T) {
				var got atomic.Int32
				srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { got.Add(1) }))
				srv.EnableHTTP2 = kind == "h2"
				srv.StartTLS()
				defer srv.Close()
				w := newWorld(t, secureApp(t, srv, ""), nil)
				w.login()
				for i, asleep := range []bool{false, true, false} { // on a connection that is there, and a new one
					w.asleep.Store(asleep)
					before := got.Load()
					answer := w.raw("crm.test", "GET /"+name+" HTTP/1.1\r\nHost: crm.test\r\n"+lines+"\r\n")
					if came := got.Load() > before; came == asleep || (answer != "") == asleep {
						t.Errorf("%d: it came to the app: %t, and the device got %.60q", i, came, answer)
					}
				}
			})
		}
	}
}
