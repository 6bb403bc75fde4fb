package gateway

import (
	"net/http"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/media"
	"github.com/portvakt/portvakt/gateway/proxy"
)

// number sets every field of a struct to another number and returns what it set.
func number(v reflect.Value) (all []int64) {
	for i := range v.NumField() {
		v.Field(i).SetInt(int64(i + 1))
		all = append(all, int64(i+1))
	}
	return all
}

// Every name in gateway.yaml bounds something, each another thing, and what is
// left out here has none on purpose: docs/operations.md says what it is.
func TestEveryNameBoundsSomething(t *testing.T) {
	var p ProxyConfig
	var m MediaConfig
	for name, c := range map[string]struct {
		names    any
		bounds   func() any
		nameless []string
	}{
		"proxy.timeouts": {&p.Timeouts, func() any { return p.timeouts() }, nil},
		"proxy.limits":   {&p.Limits, func() any { return p.limits() }, nil},
		"media.timeouts": {&m.Timeouts, func() any { return m.timeouts() }, []string{"Sweep"}},
		"media.limits":   {&m.Limits, func() any { return m.limits() }, []string{"Opening", "Workers", "Resolving"}},
	} {
		want := number(reflect.ValueOf(c.names).Elem())
		var got []int64
		var without []string
		for f, v := range reflect.ValueOf(c.bounds()).Fields() {
			if v.IsZero() {
				without = append(without, f.Name)
				continue
			}
			got = append(got, v.Int())
		}
		slices.Sort(got)
		if !slices.Equal(got, want) || !slices.Equal(without, c.nameless) {
			t.Errorf("%s: the names are %d, what they bound %d; nameless %q, want %q", name, want, got, without, c.nameless)
		}
	}
	if (ProxyConfig{}).timeouts() != (proxy.Timeouts{}) || (MediaConfig{}).limits() != (media.Limits{}) {
		t.Error("what is left out does not have its default")
	}
}

func TestPublicTimeouts(t *testing.T) {
	srv, was := &http.Server{IdleTimeout: time.Minute}, time.Minute
	PublicTimeouts{ReadHeader: Duration(2 * time.Second), Read: Duration(3 * time.Second)}.apply(srv)
	if srv.ReadHeaderTimeout != 2*time.Second || srv.ReadTimeout != 3*time.Second || srv.IdleTimeout != was {
		t.Errorf("%v %v %v", srv.ReadHeaderTimeout, srv.ReadTimeout, srv.IdleTimeout)
	}
}
