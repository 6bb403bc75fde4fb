package control

import (
	"net/http"
	"sync"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

// refusals bounds what the refusals of each device on the public port write: one
// bound per device that was ever refused by this process, so that a laptop that
// asks without end folds nobody else's.
type refusals struct {
	log *audit.Log
	now func() time.Time

	mu sync.Mutex
	of map[string]*audit.Refusals // guarded by mu
}

func (b *refusals) note(rec audit.Record) {
	b.mu.Lock()
	r := b.of[rec.Device]
	if r == nil {
		r = audit.NewRefusals(b.log, b.now)
		b.of[rec.Device] = r
	}
	b.mu.Unlock()
	r.Note(rec)
}

// refuseDevice records that a connect or a renewal of a known device is refused,
// and tells it.
func (a *API) refuseDevice(w http.ResponseWriter, r *http.Request, device string, status int, e *wire.Error) {
	a.noteDevice(r, device, e.Code, e.Message)
	a.fail(w, status, e)
}

func (a *API) noteDevice(r *http.Request, device, code, message string) {
	a.known.note(audit.Record{Kind: audit.KindConnectRefused, Reason: code, Message: message, Device: device, Remote: hostOf(r.RemoteAddr)})
}

// refuseRevoked records the same of a revoked device, and tells it why.
func (a *API) refuseRevoked(w http.ResponseWriter, r *http.Request, device string, dec policy.Decision) {
	rec := audit.Record{Kind: audit.KindConnectRefused, Device: device, Remote: hostOf(r.RemoteAddr)}
	rec.SetDecision(dec)
	a.revoked.Note(rec)
	a.refuse(w, r, http.StatusForbidden, dec)
}
