package proxy

import (
	"fmt"
	"net/http"
	"net/netip"
	"testing"

	"github.com/portvakt/portvakt/gateway/http1"
	"github.com/portvakt/portvakt/policy"
)

func TestLanesAreBounded(t *testing.T) {
	u := newUpstreams(Config{})
	var ups []*upstream
	for i := range lanesInAll/lanesPerApp + 1 {
		up := &upstream{from: policy.App{Name: fmt.Sprint(i)}, transport: func() *http.Transport { return &http.Transport{} }}
		u.all[up.from.Name] = up
		ups = append(ups, up)
	}
	holder := func(n int) http1.Holder {
		a := netip.AddrFrom4([4]byte{100, 64, byte(n >> 8), byte(n)})
		return http1.Holder{Inner: a, Device: fmt.Sprint(n), Session: fmt.Sprint(n)}
	}
	busy := u.enter(ups[0], holder(0))
	second := u.enter(ups[0], holder(1))
	u.leave(second)
	for n := 2; n <= lanesPerApp; n++ {
		u.leave(u.enter(ups[0], holder(n)))
	}
	if u.lanes.n != lanesPerApp || !second.gone || busy.gone {
		t.Fatalf("%d lanes, the oldest idle one gone %v, the one in use %v", u.lanes.n, second.gone, busy.gone)
	}
	for _, up := range ups[1:] {
		for n := range lanesPerApp {
			u.leave(u.enter(up, holder(n)))
		}
	}
	if u.lanes.n != lanesInAll {
		t.Errorf("%d lanes in all", u.lanes.n)
	}
	u.drop(holder(0).Inner, "")
	if !busy.gone {
		t.Error("a lane outlives its device")
	}
	u.leave(busy)
	u.closeIdle()
	if u.lanes.n != 0 || len(u.lanes.of) != 0 || len(u.lanes.perApp) != 0 {
		t.Errorf("%d lanes, %d devices, %d apps are left", u.lanes.n, len(u.lanes.of), len(u.lanes.perApp))
	}
	if l := u.enter(ups[0], holder(1)); !l.gone {
		t.Error("a lane to an app that was replaced is kept")
	}
}
