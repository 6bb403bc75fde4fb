package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

// fake is a connection that only reads.
type fake struct {
	net.Conn
	r io.Reader
}

func (f fake) Read(b []byte) (int, error) { return f.r.Read(b) }

// strictRead sends text through the reader, as net/http does, and tells which
// requests came out, and whether one of them stands for a refused one.
func strictRead(text string, slow bool) (targets []string, bodies []string, refused string) {
	var src io.Reader = strings.NewReader(text)
	if slow {
		src = iotest.OneByteReader(src)
	}
	s := newStrict(fake{r: src}, 64<<10)
	br := bufio.NewReader(s)
	for {
		r, err := http.ReadRequest(br)
		if err != nil {
			return targets, bodies, refused
		}
		if why, bad := s.malformed(r.RequestURI); bad {
			return targets, bodies, why
		}
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return targets, bodies, "body: " + err.Error()
		}
		targets, bodies = append(targets, r.RequestURI), append(bodies, string(b))
	}
}

const next = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"

func TestStrictRefusesWhatHasTwoLengths(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"CL and TE", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next},
		{"TE and CL", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + next},
		{"CL zero and TE", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next},
		{"two CL", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd" + next},
		{"two equal CL", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd" + next},
		{"CL list", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4, 4\r\n\r\nabcd" + next},
		{"CL signed", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n\r\nabcd" + next},
		{"CL negative", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n\r\nabcd" + next},
		{"CL hex", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0x4\r\n\r\nabcd" + next},
		{"CL empty", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: \r\n\r\nabcd" + next},
		{"CL huge", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nabcd" + next},
		{"CL underscore digits", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1_0\r\n\r\nabcd" + next},
		{"TE twice", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next},
		{"TE list", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + next},
		{"TE identity", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + next},
		{"TE xchunked", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + next},
		{"TE with tab", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + next},
		{"TE quoted", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n" + next},
		{"TE in HTTP/1.0", "POST /a HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next},
		{"space before colon", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + next},
		{"folded", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + next},
		{"folded first", "GET /a HTTP/1.1\r\n Host: x\r\n\r\n"},
		{"bare LF", "GET /a HTTP/1.1\nHost: x\n\n" + next},
		{"bare LF in the head", "GET /a HTTP/1.1\r\nHost: x\nTransfer-Encoding: chunked\r\n\r\n" + next},
		{"bare LF at the end", "GET /a HTTP/1.1\r\nHost: x\r\n\n" + next},
		{"bare CR", "GET /a HTTP/1.1\r\nHost: x\rTransfer-Encoding: chunked\r\n\r\n" + next},
		{"CR CR LF", "GET /a HTTP/1.1\r\nHost: x\r\r\n\r\n" + next},
		{"NUL in a value", "GET /a HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n" + next},
		{"NUL in a name", "GET /a HTTP/1.1\r\nHost: x\r\nX\x00Y: a\r\n\r\n" + next},
		{"no colon", "GET /a HTTP/1.1\r\nHost: x\r\nNonsense\r\n\r\n" + next},
		{"empty name", "GET /a HTTP/1.1\r\nHost: x\r\n: a\r\n\r\n" + next},
		{"two hosts", "GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" + next},
		{"no host", "GET /a HTTP/1.1\r\n\r\n" + next},
		{"empty line first", "\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n" + next},
		{"two spaces", "GET  /a HTTP/1.1\r\nHost: x\r\n\r\n" + next},
		{"space in target", "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n" + next},
		{"tab", "GET\t/a HTTP/1.1\r\nHost: x\r\n\r\n" + next},
		{"HTTP/0.9", "GET /a\r\n\r\n" + next},
		{"HTTP/2.0", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + next},
		{"HTTP/1.2", "GET /a HTTP/1.2\r\nHost: x\r\n\r\n" + next},
		{"http/1.1", "GET /a http/1.1\r\nHost: x\r\n\r\n" + next},
		{"chunk with extension", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\nx\r\n0\r\n\r\n" + next},
		{"chunk size and bare LF", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n" + next},
		{"chunk data and bare LF", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\n0\r\n\r\n" + next},
		{"chunk size signed", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\nx\r\n0\r\n\r\n" + next},
		{"chunk size 0x", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n" + next},
		{"chunk size too large", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000001\r\nx\r\n0\r\n\r\n" + next},
		{"chunk size empty", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\r\nx\r\n0\r\n\r\n" + next},
		{"chunk size with space", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\nx\r\n0\r\n\r\n" + next},
		{"chunk longer than said", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n0\r\n\r\n" + next},
		{"trailer with a bare LF", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\nC: d\r\n\r\n" + next},
		{"trailer that is folded", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n c\r\n\r\n" + next},
	} {
		for _, slow := range []bool{false, true} {
			targets, bodies, refused := strictRead(c.text, slow)
			if len(targets) != 0 || refused == "" {
				t.Errorf("%s (slow %v): let through %q with bodies %q, refused %q", c.name, slow, targets, bodies, refused)
			}
		}
	}
}

func TestStrictKeepsMessagesApart(t *testing.T) {
	text := "GET /1 HTTP/1.1\r\nHost: x\r\n\r\n" +
		"POST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello" +
		"POST /3 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: Chunked\r\nTrailer: T\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: v\r\n\r\n" +
		"POST /4 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" +
		"POST /5 HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("y", 100000) +
		"POST /6 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n186a0\r\n" + strings.Repeat("z", 100000) + "\r\n0\r\n\r\n" +
		"GET /7 HTTP/1.1\r\nHost: x\r\nX-Empty:\r\nX-Tab: a\tb\r\n\r\n"
	want := []string{"", "hello", "abc0123456789", "", strings.Repeat("y", 100000), strings.Repeat("z", 100000), ""}
	for _, slow := range []bool{false, true} {
		targets, bodies, refused := strictRead(text, slow)
		if strings.Join(targets, "") != "/1/2/3/4/5/6/7" || refused != "" {
			t.Fatalf("slow %v: %q, refused %q", slow, targets, refused)
		}
		for i := range want {
			if bodies[i] != want[i] {
				t.Errorf("slow %v: body %d has %d bytes, want %d", slow, i+1, len(bodies[i]), len(want[i]))
			}
		}
	}
}

// FuzzStrict: what passes is read by net/http to the same extent however the
// bytes arrive, and never as more requests than heads were checked.
func FuzzStrict(f *testing.F) {
	f.Add([]byte(next + next))
	f.Add([]byte("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + next))
	f.Add([]byte("POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + next))
	f.Add([]byte("POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + next))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4<<10 {
			return
		}
		fast, fb, _ := strictRead(string(data), false)
		slow, sb, _ := strictRead(string(data), true)
		if strings.Join(fast, " ") != strings.Join(slow, " ") || strings.Join(fb, "|") != strings.Join(sb, "|") {
			t.Fatalf("fast %q %q, slow %q %q", fast, fb, slow, sb)
		}
		out, err := io.ReadAll(newStrict(fake{r: bytes.NewReader(data)}, 64<<10))
		if err == nil && len(out) > len(data)+128 {
			t.Fatalf("%d bytes became %d", len(data), len(out))
		}
	})
}
