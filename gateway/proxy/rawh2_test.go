package proxy_test

import (
	"crypto/tls"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func unescapeGo(t *testing.T, s string) string {
	t.Helper()
	out, err := strconv.Unquote(`"` + s + `"`)
	if err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return out
}

// rawH2 sends what no client library would.
type rawH2 struct {
	t      *testing.T
	w      *world
	conn   *tls.Conn
	framer *http2.Framer
	buf    strings.Builder
	enc    *hpack.Encoder
	stream uint32
}

func newRawH2(t *testing.T, w *world) *rawH2 { return &rawH2{t: t, w: w} }

func (h *rawH2) open() {
	h.conn = h.w.tls("crm.test", "h2")
	_, _ = io.WriteString(h.conn, http2.ClientPreface)
	h.framer = http2.NewFramer(h.conn, h.conn)
	h.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = h.framer.WriteSettings()
	_ = h.framer.WriteWindowUpdate(0, 1<<30)
	h.buf.Reset()
	h.enc, h.stream = hpack.NewEncoder(&h.buf), 1
}

func (h *rawH2) get(target string, more ...[2]string) string {
	return h.send(nil, nil, append([][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "crm.test"}, {":path", target}}, more...)...)
}

// block encodes fields as they are.
func (h *rawH2) block(fields [][2]string) []byte {
	h.buf.Reset()
	for _, f := range fields {
		_ = h.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return []byte(h.buf.String())
}

// send makes one request and returns its status, or "reset".
func (h *rawH2) send(data []string, trailers [][2]string, fields ...[2]string) string {
	if h.conn == nil {
		h.open()
	}
	_ = h.conn.SetDeadline(time.Now().Add(slack * 5 * time.Second))
	id := h.stream
	h.stream += 2
	err := h.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: h.block(fields), EndHeaders: true, EndStream: len(data) == 0 && len(trailers) == 0,
	})
	for i, d := range data {
		if err == nil {
			err = h.framer.WriteData(id, i == len(data)-1 && len(trailers) == 0, []byte(d))
		}
	}
	if len(trailers) > 0 && err == nil {
		err = h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.block(trailers), EndHeaders: true, EndStream: true})
	}
	if err != nil {
		h.conn = nil
		return "reset"
	}
	status := "reset"
	for {
		f, err := h.framer.ReadFrame()
		if err != nil {
			h.conn = nil
			return status
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = h.framer.WriteSettingsAck()
			}
		case *http2.GoAwayFrame:
			if f.LastStreamID < id {
				h.conn = nil
				return status
			}
		case *http2.MetaHeadersFrame:
			if f.StreamID == id {
				status = f.PseudoValue("status")
				if f.StreamEnded() {
					return status
				}
			}
		case *http2.DataFrame:
			if f.StreamID == id && f.StreamEnded() {
				if strings.HasPrefix(status, "4") {
					h.conn.Close() // it is being closed: GOAWAY follows
					h.conn = nil
				}
				return status
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return "reset"
			}
		}
	}
}
