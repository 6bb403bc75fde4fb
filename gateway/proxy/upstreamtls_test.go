package proxy_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// secureApp is crmYAML at a TLS server of the test's.
func secureApp(t *testing.T, srv *httptest.Server, more string) []string {
	return []string{strings.Replace(crmYAML, "{{crm}}", srv.URL, 1) + "upstream_ca_file: " + caFile(t, srv) + "\n" + more}
}

// An app that takes connections with the gateway's certificate alone, and a
// certificate that is renewed while the gateway runs.
func TestUpstreamClientCertificate(t *testing.T) {
	issue, roots := newCA(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.TLS.PeerCertificates[0].DNSNames)
		w.Header().Set("Connection", "close")
	}))
	srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
		if len(raw) == 0 {
			return fmt.Errorf("no certificate")
		}
		c, err := x509.ParseCertificate(raw[0])
		if err != nil {
			return err
		}
		_, err = c.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		return err
	}}
	srv.Config.SetKeepAlivesEnabled(false)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "c.pem"), filepath.Join(dir, "c.key")
	write := func(name string) {
		c, err := issue([]string{name})
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: der}} {
			if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("gateway-one")

	w := newWorld(t, secureApp(t, srv, ""), nil)
	if res, _ := get(t, w.client(false), "https://crm.test/"); res.StatusCode != http.StatusBadGateway {
		t.Errorf("without a certificate: %d", res.StatusCode)
	}
	w.publish(secureApp(t, srv, "upstream_cert_file: "+cert+"\nupstream_key_file: "+key+"\n"), nil)
	c := w.client(false)
	for _, name := range []string{"gateway-one", "gateway-two"} {
		write(name)
		if res, body := get(t, c, "https://crm.test/"); res.StatusCode != http.StatusOK || body != "["+name+"]" {
			t.Errorf("%s: %d %s", name, res.StatusCode, body)
		}
	}
}

// What gRPC needs of a proxy: HTTP/2 on both sides, both directions at once, and
// trailers, also where there is no body.
func TestGRPC(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || r.Header.Get("Te") != "trailers" || r.Header.Get("Content-Type") != "application/grpc" {
			t.Errorf("the app was asked with %s %v", r.Proto, r.Header)
		}
		w.Header().Set("Content-Type", "application/grpc")
		if r.URL.Path == "/pkg.Service/Refuse" {
			w.Header().Set("Grpc-Status", "7") // gRPC's trailers-only answer is one of headers
			return
		}
		w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
		rc := http.NewResponseController(w)
		b := make([]byte, 64)
		for {
			n, err := r.Body.Read(b)
			if n > 0 {
				_, _ = w.Write([]byte(strings.ToUpper(string(b[:n]))))
				_ = rc.Flush()
			}
			if err != nil {
				break
			}
		}
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set("Grpc-Message", "done")
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	w := newWorld(t, secureApp(t, srv, ""), nil)
	call := func(path string, body io.Reader) *http.Response {
		req, err := http.NewRequest(http.MethodPost, "https://crm.test"+path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
		res, err := w.client(true).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	pr, pw := io.Pipe()
	go func() { _, _ = io.WriteString(pw, "one") }()
	res := call("/pkg.Service/Talk", pr)
	b := make([]byte, 64)
	for _, word := range []string{"one", "two", "three"} {
		if word != "one" {
			_, _ = io.WriteString(pw, word)
		}
		if n, err := res.Body.Read(b); err != nil || string(b[:n]) != strings.ToUpper(word) {
			t.Fatalf("said %s, heard %q %v", word, b[:n], err)
		}
	}
	_ = pw.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.Trailer.Get("Grpc-Status") != "0" || res.Trailer.Get("Grpc-Message") != "done" {
		t.Errorf("it ended with %v %v", res.Trailer, err)
	}
	_ = res.Body.Close()
	res = call("/pkg.Service/Refuse", strings.NewReader("x"))
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	if got := res.Header.Get("Grpc-Status"); got != "7" {
		t.Errorf("a refusal of the app's: %v %v", res.Header, res.Trailer)
	}
}
