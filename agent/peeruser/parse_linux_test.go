package peeruser

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const procHeader = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

func TestParseProc(t *testing.T) {
	for name, c := range map[string]struct {
		rows string
		want []socket
		err  string
	}{
		"empty": {rows: ""},
		"v4": {
			rows: "   0: 0100007F:1F90 0200007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 12345 1 x\n",
			want: []socket{{netip.MustParseAddrPort("127.0.0.1:8080"), netip.MustParseAddrPort("127.0.0.2:50000"), 1000, 12345}},
		},
		"v4-mapped": {
			rows: "   0: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000200007F:C350 01 0:0 0:0 0 7 0 9 1 x\n",
			want: []socket{{netip.MustParseAddrPort("127.0.0.1:8080"), netip.MustParseAddrPort("127.0.0.2:50000"), 7, 9}},
		},
		"v6": {
			rows: "   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 3 1 x\n",
			want: []socket{{netip.MustParseAddrPort("[::1]:80"), netip.MustParseAddrPort("[::]:0"), 0, 3}},
		},
		"wide inode": {
			rows: "   0: 0100007F:1F90 0200007F:C350 01 0:0 0:0 0 7 0 4294967296 1 x\n",
			want: []socket{{netip.MustParseAddrPort("127.0.0.1:8080"), netip.MustParseAddrPort("127.0.0.2:50000"), 7, 1}},
		},
		"short row": {rows: "0: 0100007F:1F90\n", err: "columns"},
		"bad host":  {rows: "0: 01007F:1F90 0200007F:C350 01 0:0 0:0 0 7 0 9 1 x\n", err: "address"},
		"bad port":  {rows: "0: 0100007F:11F90 0200007F:C350 01 0:0 0:0 0 7 0 9 1 x\n", err: "address"},
		"bad user":  {rows: "0: 0100007F:1F90 0200007F:C350 01 0:0 0:0 0 -7 0 9 1 x\n", err: "user"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseProc(strings.NewReader(procHeader + c.rows))
			if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Fatalf("err = %v, want %q", err, c.err)
			}
			if d := cmp.Diff(c.want, got, cmp.AllowUnexported(socket{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
				t.Error(d)
			}
		})
	}
}

// The two sources have to tell the same about a connection of this process.
func TestProcAgreesWithDiag(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	client, server := netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(l.Addr().String())
	diag, err := diagTCP(client, server)
	if err != nil || len(diag) != 1 {
		t.Fatalf("sock_diag: %v, %v", diag, err)
	}
	table, err := procSockets("tcp")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(table, diag[0]) {
		t.Errorf("/proc/net has no %+v", diag[0])
	}
}

func FuzzParseProc(f *testing.F) {
	f.Add(procHeader + "   0: 0100007F:1F90 0200007F:C350 01 0:0 0:0 0 1000 0 12345 1 x\n")
	f.Fuzz(func(t *testing.T, text string) {
		socks, err := parseProc(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, s := range socks {
			if !s.local.Addr().IsValid() || s.local.Addr().Is4In6() {
				t.Fatalf("unusable address %v", s.local)
			}
		}
	})
}

func FuzzParseDiag(f *testing.F) {
	f.Add(diagRequest(2, 6, 0, netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		socks, _, err := parseDiag(b)
		if err != nil && socks != nil {
			t.Fatal("sockets beside an error")
		}
		for _, s := range socks {
			if !s.local.Addr().IsValid() {
				t.Fatal("unusable address")
			}
		}
	})
}
