package sink

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

const (
	syslogTimeout = 10 * time.Second
	// facility 13 is "log audit": RFC 5424, section 6.2.1.
	facility = 13
	// maxUnread is how much of what was acknowledged may still lie unread in the
	// other machine: more than receive buffers usually grow to.
	maxUnread = 8 << 20
)

// syslog is RFC 5424 over TLS (RFC 5425). The protocol has no answer, so a batch
// counts as arrived when the other machine has acknowledged every byte of it
// (see flushed). A program there may still have died without reading it: when a
// connection breaks, what it carried last goes out again on the next one.
type syslog struct {
	cfg    Config
	tls    *tls.Config
	conn   *tls.Conn
	raw    net.Conn // the TCP connection below conn
	recent []batched
	size   int // of recent, in bytes
}

// batched are frames that were acknowledged, on a connection that did not end in
// order.
type batched struct {
	frames []byte
	first  uint64 // the number of the first record
}

// mark implements receiver: the first record that perhaps nobody read although it
// was acknowledged.
func (s *syslog) mark(at *position) {
	at.Unread = 0
	if len(s.recent) > 0 {
		at.Unread = s.recent[0].first
	}
}

func newSyslog(cfg Config) (*syslog, error) {
	conf, err := TLSConfig(cfg.CAFile)
	if err != nil {
		return nil, err
	}
	if conf.ServerName, _, err = net.SplitHostPort(cfg.To); err != nil {
		return nil, fmt.Errorf("reading the address %q: %w", cfg.To, err)
	}
	return &syslog{cfg: cfg, tls: conf}, nil
}

func (s *syslog) send(ctx context.Context, batch []record) (err error) {
	defer func() {
		if err != nil && s.conn != nil {
			_ = s.conn.Close() // it is broken already
			s.conn, s.raw = nil, nil
		}
	}()
	if s.conn == nil {
		if err := s.dial(ctx); err != nil {
			return err
		}
		for _, again := range s.recent {
			if err := s.write(ctx, again.frames); err != nil {
				return err
			}
		}
	}
	var b bytes.Buffer
	for _, r := range batch {
		s.frame(&b, r)
	}
	if err := s.write(ctx, b.Bytes()); err != nil {
		return err
	}
	s.recent = append(s.recent, batched{b.Bytes(), batch[0].Seq})
	for s.size += b.Len(); s.size > maxUnread && len(s.recent) > 1; s.recent = s.recent[1:] {
		s.size -= len(s.recent[0].frames)
	}
	return nil
}

func (s *syslog) write(ctx context.Context, frames []byte) error {
	if err := s.conn.SetDeadline(time.Now().Add(syslogTimeout)); err != nil {
		return err
	}
	if _, err := s.conn.Write(frames); err != nil {
		return fmt.Errorf("sending to %s: %w", s.cfg.To, err)
	}
	if err := flushed(ctx, s.raw, syslogTimeout); err != nil {
		return fmt.Errorf("sending to %s: %w", s.cfg.To, err)
	}
	return nil
}

func (s *syslog) dial(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syslogTimeout)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", s.cfg.To)
	if err != nil {
		return fmt.Errorf("connecting to %s: %w", s.cfg.To, err)
	}
	conn := tls.Client(raw, s.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		return errors.Join(fmt.Errorf("connecting to %s: %w", s.cfg.To, err), raw.Close())
	}
	s.conn, s.raw = conn, raw
	return nil
}

// frame writes one message with its length in front: RFC 5425, section 4.3.
func (s *syslog) frame(to *bytes.Buffer, r record) {
	severity := 6 // informational
	if r.Allow != nil && !*r.Allow || strings.HasSuffix(string(r.Kind), "_refused") {
		severity = 4 // warning
	}
	msg := fmt.Sprintf("<%d>1 %s %s portvakt-gateway - %s [portvakt@32473 seq=\"%d\"] %s",
		facility*8+severity, r.Time.UTC().Format("2006-01-02T15:04:05.000000Z"), hostname(s.cfg.Node), r.Kind, r.Seq,
		bytes.TrimRight(r.text, "\r\n"))
	to.WriteString(strconv.Itoa(len(msg)) + " " + msg)
}

// hostname is a node's name as RFC 5424, section 6.2.4, wants it: printable
// ASCII, at most 255.
func hostname(node string) string {
	clean := strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, node)
	if clean == "" {
		return "-"
	}
	return clean[:min(len(clean), 255)]
}

// close ends the connection in order: the other end reads everything up to our
// end before it closes. Closing with its session tickets unread would be a
// reset, which throws away what it has not read.
func (s *syslog) close() error {
	if s.conn == nil {
		return nil
	}
	conn := s.conn
	s.conn, s.raw = nil, nil
	err := conn.SetDeadline(time.Now().Add(time.Second))
	if err == nil {
		err = conn.CloseWrite()
	}
	if err == nil {
		if _, err = io.Copy(io.Discard, conn); err == nil {
			s.recent, s.size = nil, 0
		}
	}
	return errors.Join(err, conn.Close())
}
