package app_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/portvakt/portvakt/deploy/demo/app"
)

var quiet = slog.New(slog.DiscardHandler)

// gateway signs assertions as the real one does and publishes the keys.
type gateway struct {
	key     *ecdsa.PrivateKey
	srv     *httptest.Server
	fetches atomic.Int32
}

func newGateway(t *testing.T) *gateway {
	t.Helper()
	g := &gateway{key: newKey(t)}
	g.srv = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		g.fetches.Add(1)
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &g.key.PublicKey, KeyID: "k1", Algorithm: "ES256"}}})
	}))
	t.Cleanup(g.srv.Close)
	return g
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (g *gateway) verifier(t *testing.T, audience string) *app.Verifier {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := app.ClientTrusting(ca, "")
	if err != nil {
		t.Fatal(err)
	}
	return &app.Verifier{Audience: audience, Issuer: "https://gw.example", JWKS: g.srv.URL, Client: c}
}

func mustBytes(t *testing.T, k *ecdsa.PublicKey) []byte {
	t.Helper()
	b, err := k.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sign(t *testing.T, alg jose.SignatureAlgorithm, key any, kid string, claims map[string]any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", kid))
	if err != nil {
		t.Fatal(err)
	}
	out, err := jwt.Signed(s).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func anna(change map[string]any) map[string]any {
	now := time.Now()
	c := map[string]any{"iss": "https://gw.example", "sub": "user-anna", "name": "Anna", "groups": []string{"sales"}, "aud": "crm", "iat": now.Unix(), "exp": now.Add(time.Minute).Unix()}
	for k, v := range change {
		if c[k] = v; v == nil {
			delete(c, k)
		}
	}
	return c
}

func TestVerify(t *testing.T) {
	g := newGateway(t)
	hour := time.Now().Add(-time.Hour).Unix()
	for _, tc := range []struct {
		name    string
		headers []string
		says    string // "" means accepted
	}{
		{"good", []string{sign(t, jose.ES256, g.key, "k1", anna(nil))}, ""},
		{"none", nil, "no assertion"},
		{"two", []string{sign(t, jose.ES256, g.key, "k1", anna(nil)), sign(t, jose.ES256, g.key, "k1", anna(nil))}, "no assertion"},
		{"garbage", []string{"a.b.c"}, "reading"},
		{"another app's", []string{sign(t, jose.ES256, g.key, "k1", anna(map[string]any{"aud": "payments"}))}, "aud"},
		{"another gateway's", []string{sign(t, jose.ES256, g.key, "k1", anna(map[string]any{"iss": "https://other.example"}))}, "iss"},
		{"no audience", []string{sign(t, jose.ES256, g.key, "k1", anna(map[string]any{"aud": nil}))}, "aud"},
		{"expired", []string{sign(t, jose.ES256, g.key, "k1", anna(map[string]any{"exp": hour}))}, "expired"},
		{"without an end", []string{sign(t, jose.ES256, g.key, "k1", anna(map[string]any{"exp": nil}))}, "never expires"},
		{"another key of that name", []string{sign(t, jose.ES256, newKey(t), "k1", anna(nil))}, "signature"},
		{"unknown key", []string{sign(t, jose.ES256, newKey(t), "k2", anna(nil))}, "no key"},
		{"no key id", []string{sign(t, jose.ES256, g.key, "", anna(nil))}, "names no key"},
		{"HMAC with the public key", []string{sign(t, jose.HS256, mustBytes(t, &g.key.PublicKey), "k1", anna(nil))}, "reading"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := g.verifier(t, "crm")
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			for _, h := range tc.headers {
				r.Header.Add(app.AssertionHeader, h)
			}
			who, err := v.Verify(r)
			switch {
			case tc.says == "" && (err != nil || who.Name != "Anna" || len(who.Groups) != 1 || who.Groups[0] != "sales"):
				t.Errorf("got %+v, %v", who, err)
			case tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)):
				t.Errorf("got %+v, error %v, want one that says %q", who, err, tc.says)
			case tc.says != "" && who.Subject != "":
				t.Errorf("an error came with a person: %+v", who)
			}
		})
	}
}

// Tokens with made-up keys must not become a request to the gateway each.
func TestUnknownKeysAreFetchedSeldom(t *testing.T) {
	g := newGateway(t)
	v := g.verifier(t, "crm")
	for i := range 20 {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set(app.AssertionHeader, sign(t, jose.ES256, g.key, fmt.Sprint("made-up-", i), anna(nil)))
		if _, err := v.Verify(r); err == nil {
			t.Fatal("accepted")
		}
	}
	if n := g.fetches.Load(); n > 3 {
		t.Errorf("fetched the keys %d times for 20 bad tokens", n)
	}
}

func TestWebApps(t *testing.T) {
	g := newGateway(t)
	crm := httptest.NewServer(app.CRM(app.Web{Verify: g.verifier(t, "crm").Verify, Hosts: []string{"crm.demo.example"}, Log: quiet}))
	pay := httptest.NewServer(app.Payments(app.Web{Verify: g.verifier(t, "payments").Verify, Log: quiet}))
	t.Cleanup(crm.Close)
	t.Cleanup(pay.Close)
	for _, tc := range []struct {
		method, url, aud string
		status           int
		says             string
	}{
		{"GET", crm.URL + "/", "crm", 200, "<strong>Anna</strong> <span>sales</span>"},
		{"GET", crm.URL + "/", "", 401, "no assertion"},
		{"GET", crm.URL + "/", "payments", 401, "aud"},
		{"GET", crm.URL + "/queue", "crm", 200, "queue.js"},
		{"GET", crm.URL + "/queue.js", "", 200, "WebSocket"},
		{"GET", crm.URL + "/api/me", "crm", 200, `"name":"Anna"`},
		{"GET", crm.URL + "/api/customers", "crm", 200, `"number":10021`},
		{"POST", crm.URL + "/export", "crm", 200, "10058,"},
		{"POST", crm.URL + "/export", "", 401, ""},
		{"GET", crm.URL + "/nothing", "crm", 404, ""},
		{"GET", pay.URL + "/", "payments", 200, "12 400,00 SEK"},
		{"GET", pay.URL + "/api/payments", "payments", 200, "88102"},
		{"GET", pay.URL + "/api/payments", "crm", 401, ""},
	} {
		req, err := http.NewRequest(tc.method, tc.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tc.aud != "" {
			req.Header.Set(app.AssertionHeader, sign(t, jose.ES256, g.key, "k1", anna(map[string]any{"aud": tc.aud})))
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tc.status || !strings.Contains(string(body), tc.says) {
			t.Errorf("%s %s as %q: %d %.200q, want %d with %q", tc.method, tc.url, tc.aud, resp.StatusCode, body, tc.status, tc.says)
		}
	}
}

func TestCallQueue(t *testing.T) {
	g := newGateway(t)
	crm := httptest.NewServer(app.CRM(app.Web{Verify: g.verifier(t, "crm").Verify, Hosts: []string{"crm.demo.example"}, Log: quiet}))
	t.Cleanup(crm.Close)
	dial := func(origin, aud string) (*websocket.Conn, error) {
		h := http.Header{"Origin": {origin}, app.AssertionHeader: {sign(t, jose.ES256, g.key, "k1", anna(map[string]any{"aud": aud}))}}
		c, _, err := websocket.Dial(t.Context(), crm.URL+"/ws", &websocket.DialOptions{HTTPHeader: h})
		return c, err
	}
	c, err := dial("https://crm.demo.example", "crm")
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	for want := 1; want <= 3; want++ {
		var tick app.Tick
		if err := wsjson.Read(t.Context(), c, &tick); err != nil || tick.Seq != want || tick.Next == "" {
			t.Fatalf("tick %+v, %v, want number %d", tick, err, want)
		}
	}
	if c, err := dial("https://evil.example", "crm"); err == nil {
		c.CloseNow()
		t.Error("a page of another host opened the call queue")
	}
	if c, err := dial("https://crm.demo.example", "payments"); err == nil {
		c.CloseNow()
		t.Error("an assertion for another app opened the call queue")
	}
}

func TestDesk(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- app.Desk(ctx, l, quiet) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "hello there\nNEXT\r\nNEXT\nQUIT\n"); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(c)
	for _, want := range []string{app.Greeting, "ECHO hello there", "TICKET 1", "TICKET 2", "BYE"} {
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("got %q, %v, want %q", lines.Text(), lines.Err(), want)
		}
	}
	if lines.Scan() {
		t.Errorf("after BYE came %q", lines.Text())
	}
	// One that stays must not keep the desk from closing.
	stay, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer stay.Close()
	if _, err := bufio.NewReader(stay).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the desk did not close")
	}
}

func TestVoice(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- app.Voice(ctx, pc, quiet) }()
	for range 2 { // each caller has a count of its own
		c, err := net.Dial("udp", pc.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		buf := make([]byte, 100)
		for i := 1; i <= 3; i++ {
			fmt.Fprintf(c, "frame %d", i*7)
			n, err := c.Read(buf)
			if want := fmt.Sprintf("%d frame %d", i, i*7); err != nil || string(buf[:n]) != want {
				t.Fatalf("got %q, %v, want %q", buf[:n], err, want)
			}
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
