package proxy_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/proxy"
	"github.com/portvakt/portvakt/policy"
)

// canned is an app that costs next to nothing: it reads heads and answers each
// with the same bytes. asked, if any, is called when a request has come.
func canned(b testing.TB, size int, asked ...func()) (addr string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	answer := append([]byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nDate: Mon, 02 Mar 2026 09:00:00 GMT\r\nContent-Length: "+strconv.Itoa(size)+"\r\n\r\n"), make([]byte, size)...)
	var mu sync.Mutex
	var conns []net.Conn
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			go func() {
				defer c.Close()
				br := bufio.NewReaderSize(c, 4<<10)
				for {
					line, err := br.ReadSlice('\n')
					if err != nil {
						return
					}
					if len(line) == 2 {
						for _, f := range asked {
							f()
						}
						if _, err := c.Write(answer); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	b.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			_ = c.Close()
		}
	})
	return l.Addr().String()
}

// load sends the same request on one kept connection for each worker.
func load(b *testing.B, conns, size int, dial func() net.Conn) {
	request := []byte("GET /customers/4711?tab=calls HTTP/1.1\r\nHost: crm.test\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n" +
		"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: sv-SE,sv;q=0.8,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\nCookie: sid=0123456789abcdef0123456789abcdef\r\n\r\n")
	workers := make(chan net.Conn, conns)
	for range conns {
		workers <- dial()
	}
	b.SetBytes(int64(size))
	b.SetParallelism(max(conns/2, 1))
	b.ResetTimer()
	begin := cpuTime()
	defer func() { b.ReportMetric(float64(cpuTime()-begin)/1e3/float64(b.N), "cpu-us/op") }()
	var once sync.Once
	one := func(c net.Conn, br *bufio.Reader) bool {
		if _, err := c.Write(request); err != nil {
			once.Do(func() { b.Error(err) })
			return false
		}
		length, ok := -1, false
		for {
			line, err := br.ReadSlice('\n')
			if err != nil {
				once.Do(func() { b.Error(err) })
				return false
			}
			if bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
				ok = true
			}
			if v, found := bytes.CutPrefix(line, []byte("Content-Length: ")); found {
				length, _ = strconv.Atoi(string(bytes.TrimSpace(v)))
			}
			if len(line) == 2 {
				break
			}
		}
		if _, err := br.Discard(size); err != nil || !ok || length != size {
			once.Do(func() { b.Error("a wrong answer", err, ok, length) })
			return false
		}
		return true
	}
	if conns == 1 {
		c := <-workers
		br := bufio.NewReaderSize(c, 32<<10)
		for b.Loop() {
			if !one(c, br) {
				return
			}
		}
		return
	}
	b.RunParallel(func(pb *testing.PB) {
		c := <-workers
		br := bufio.NewReaderSize(c, 32<<10)
		for pb.Next() {
			if !one(c, br) {
				return
			}
		}
	})
}

// cpuTime is what this process used, load and app included.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// One request through the whole chain on a kept connection (framing, policy,
// record, assertion, upstream) beside what a bare httputil.ReverseProxy needs
// for it with the same TLS, client and app.
func BenchmarkRequest(b *testing.B) {
	for _, size := range []int{100, 16 << 10} {
		for _, conns := range []int{1, 64} {
			b.Run(fmt.Sprintf("%dB/c%d/chain", size, conns), func(b *testing.B) {
				w := newWorld(b, []string{crmYAML}, map[string]string{"crm": "http://" + canned(b, size)})
				load(b, conns, size, func() net.Conn { return w.tls("crm.test") })
			})
			b.Run(fmt.Sprintf("%dB/c%d/bare", size, conns), func(b *testing.B) {
				load(b, conns, size, bareProxy(b, canned(b, size)))
			})
		}
	}
}

// From the end of parsing, when the handler asks which app it is, until the app
// has read the request: decision, record and assertion, and what the system
// takes to carry bytes to a process that sleeps, which echo shows.
func BenchmarkToApp(b *testing.B) {
	var parsed atomic.Int64
	var took []time.Duration
	median := func(b *testing.B) {
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-us")
		b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-us")
		took = nil
	}
	b.Run("request", func(b *testing.B) {
		app := canned(b, 100, func() { took = append(took, time.Duration(time.Now().UnixNano()-parsed.Load())) })
		w := newWorld(b, []string{crmYAML}, map[string]string{"crm": "http://" + app}, func(c *proxy.Config) {
			find := c.AppByAddr
			c.AppByAddr = func(a netip.Addr) *policy.App {
				parsed.Store(time.Now().UnixNano())
				return find(a)
			}
		})
		load(b, 1, 100, func() net.Conn { return w.tls("crm.test") })
		median(b)
	})
	b.Run("echo", func(b *testing.B) {
		app := canned(b, 100, func() { took = append(took, time.Duration(time.Now().UnixNano()-parsed.Load())) })
		c, err := net.Dial("tcp", app)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		answer := make([]byte, 4<<10)
		for b.Loop() {
			parsed.Store(time.Now().UnixNano())
			_, _ = c.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
			if _, err := c.Read(answer); err != nil {
				b.Fatal(err)
			}
		}
		median(b)
	})
}

func bareProxy(b testing.TB, app string) func() net.Conn {
	certificate, roots := newCA(b)
	pair, err := certificate([]string{"crm.test"})
	if err != nil {
		b.Fatal(err)
	}
	target := &url.URL{Scheme: "http", Host: app}
	tr := &http.Transport{MaxIdleConnsPerHost: 128, DisableCompression: true}
	srv := &http.Server{
		Handler: &httputil.ReverseProxy{
			Rewrite:    func(pr *httputil.ProxyRequest) { pr.SetURL(target); pr.SetXForwarded() },
			Transport:  tr,
			BufferPool: &pool{}, ErrorLog: log.New(io.Discard, "", 0),
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		_ = srv.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{*pair}, NextProtos: []string{"http/1.1"}}))
	}()
	b.Cleanup(func() { _ = srv.Close(); tr.CloseIdleConnections() })
	return func() net.Conn {
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "crm.test"})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = c.Close() })
		return c
	}
}

type pool struct{ p sync.Pool }

func (p *pool) Get() []byte {
	if v, ok := p.p.Get().(*[]byte); ok {
		return *v
	}
	return make([]byte, 64<<10)
}

func (p *pool) Put(v []byte) { p.p.Put(&v) }

// greet is an app that says a byte to whoever connects and waits for the end.
func greet(b testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = c.Write([]byte{'!'})
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
	b.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

// New TCP connections, decision and records included, beside a relay that only
// dials and copies.
func BenchmarkConnect(b *testing.B) {
	open := func(b *testing.B, address string) {
		begin := cpuTime()
		b.SetParallelism(4)
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			var one [1]byte
			for pb.Next() {
				c, err := net.Dial("tcp", address)
				if err != nil {
					b.Error(err)
					return
				}
				if _, err := io.ReadFull(c, one[:]); err != nil {
					b.Error(err)
				}
				_ = c.(*net.TCPConn).SetLinger(0) // leaves no port behind
				_ = c.Close()
			}
		})
		b.ReportMetric(float64(cpuTime()-begin)/1e3/float64(b.N), "cpu-us/op")
	}
	b.Run("chain", func(b *testing.B) {
		w := newWorld(b, []string{deskYAML}, map[string]string{"desk": greet(b)})
		_ = w.dial("desk.test", 7000).Close() // makes the listener
		w.mu.Lock()
		address := w.listeners[w.address("desk.test", 7000)].Addr().String()
		w.mu.Unlock()
		open(b, address)
	})
	b.Run("bare", func(b *testing.B) {
		app := greet(b)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					up, err := net.Dial("tcp", app)
					if err != nil {
						return
					}
					defer up.Close()
					go func() { _, _ = io.Copy(up, c); _ = up.Close() }()
					_, _ = io.Copy(c, up)
				}()
			}
		}()
		open(b, l.Addr().String())
	})
}
