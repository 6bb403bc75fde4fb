package control

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/portvakt/portvakt/certs"
	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

// enroll redeems a code. The code is consumed and the device stored in one
// write; the certificate, which is the grant, comes after the record. A caller
// that lost the answer may repeat it with the same key and gets the same
// device, so that a second click costs no second code.
func (a *API) enroll(w http.ResponseWriter, r *http.Request) {
	remote := hostOf(r.RemoteAddr)
	note := func(code, message string) {
		a.strangers.Note(audit.Record{Kind: audit.KindEnrollRefused, Reason: code, Message: message, Remote: remote})
	}
	var req wire.EnrollRequest
	if !a.read(w, r, &req, note) {
		return
	}
	now := a.cfg.Now()
	refused := func(status int, code, message, remedy string) {
		note(code, message)
		a.fail(w, status, &wire.Error{Code: code, Message: message, Remedy: remedy})
	}
	hash, err := wire.ParseSecret(req.Code)
	if err != nil {
		refused(http.StatusForbidden, "code_unknown", "The enrolment code is not one of this gateway's.", "Copy the whole code again, or ask IT for a new one.")
		return
	}
	pub, err := certs.ParseCSR(req.CSR)
	if err != nil {
		refused(http.StatusBadRequest, "bad_csr", "The certificate request is not one of an ECDSA P-256 key, signed with it.", "")
		return
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		refused(http.StatusBadRequest, "bad_csr", "The certificate request's key cannot be encoded.", "")
		return
	}
	info := req.Device
	d := store.Device{
		ID: store.DeviceOf(hash), Name: clean(info.Name, 64), Serial: clean(info.Serial, 64), OS: clean(info.OS, 32), Arch: clean(info.Arch, 32),
		KeyTier: "software", KeyHash: sha256.Sum256(der), PublicKey: der, EnrolledAt: now, LastSeen: now,
	}
	// Only what is proven may be called more than software, and nothing proves
	// it yet: the tier an agent claims is kept for the record.
	d, err = a.cfg.Store.RedeemInvite(r.Context(), store.Redeem{SecretHash: hash, Device: d, Now: now})
	if errors.Is(err, store.ErrInviteUsed) {
		if again, ok := a.redeemedBy(r, hash, sha256.Sum256(der)); ok {
			d, err = again, nil
		}
	}
	switch {
	case errors.Is(err, store.ErrInviteUnknown):
		refused(http.StatusForbidden, "code_unknown", "The enrolment code is not one of this gateway's.", "Copy the whole code again, or ask IT for a new one.")
		return
	case errors.Is(err, store.ErrInviteUsed):
		refused(http.StatusConflict, "code_used", "The enrolment code was used already.", "Ask IT for a new code. If nobody of yours used it, tell them so.")
		return
	case errors.Is(err, store.ErrInviteExpired):
		refused(http.StatusForbidden, "code_expired", "The enrolment code has expired.", "Ask IT for a new code.")
		return
	case errors.Is(err, store.ErrInviteSerial):
		refused(http.StatusForbidden, "code_serial", "The enrolment code is for another laptop's serial number.", "Ask IT for a code for this laptop.")
		return
	case errors.Is(err, store.ErrKeyTaken):
		refused(http.StatusConflict, "key_taken", "This device key is enrolled already, or was revoked.", "Enrol with a new key: portvakt-agent enroll --force.")
		return
	case err != nil:
		a.internal(w, "redeeming an enrolment code", err)
		return
	}
	rec := &audit.Record{
		Kind: audit.KindEnroll, Device: d.ID, Remote: remote,
		Detail: map[string]string{"name": d.Name, "serial": d.Serial, "os": d.OS, "claimed_key_tier": clean(info.KeyTier, 32), "key": hex.EncodeToString(d.KeyHash[:])},
	}
	a.grantCertificate(w, rec, d)
}

// redeemAgain is how long a used code answers the key that used it: a lost
// answer is asked for again at once. Later the way to a certificate is renewal,
// which refuses a laptop that was away too long.
const redeemAgain = 10 * time.Minute

// redeemedBy says whether the code was redeemed a moment ago by the holder of
// this very key, which the CSR's signature proves.
func (a *API) redeemedBy(r *http.Request, secret, key [32]byte) (store.Device, bool) {
	inv, err := a.cfg.Store.Invite(r.Context(), secret)
	if err != nil {
		return store.Device{}, false
	}
	if inv.UsedAt.IsZero() || a.cfg.Now().Sub(inv.UsedAt) > redeemAgain {
		return store.Device{}, false
	}
	d, err := a.cfg.Store.Device(r.Context(), inv.DeviceID)
	if err != nil || d.KeyHash != key || d.Revoked() {
		return store.Device{}, false
	}
	return d, true
}

// grantCertificate records, then issues.
func (a *API) grantCertificate(w http.ResponseWriter, rec *audit.Record, d store.Device) {
	if err := a.cfg.Audit.Append(rec); err != nil {
		a.internal(w, "recording a certificate; not issuing it", err)
		return
	}
	pub, err := x509.ParsePKIXPublicKey(d.PublicKey)
	if err != nil {
		a.internal(w, "reading a stored device key", err)
		return
	}
	cert, notAfter, err := a.cfg.CA.IssueDevice(d.ID, pub)
	if err != nil {
		a.internal(w, "issuing a device certificate", err)
		return
	}
	a.answer(w, wire.EnrollResponse{DeviceID: d.ID, Certificate: string(cert), CA: string(a.cfg.CA.RootPEM()), NotAfter: notAfter})
}

// device authenticates the client certificate of a public call. Status is
// checked here on every request and never in the handshake alone, so that a
// refused device is told why.
func (a *API) device(w http.ResponseWriter, r *http.Request) (store.Device, certs.DeviceIdentity, bool) {
	remote := hostOf(r.RemoteAddr)
	refused := func(status int, e *wire.Error, device string) (store.Device, certs.DeviceIdentity, bool) {
		a.strangers.Note(audit.Record{Kind: audit.KindConnectRefused, Reason: e.Code, Message: e.Message, Device: device, Remote: remote})
		a.fail(w, status, e)
		return store.Device{}, certs.DeviceIdentity{}, false
	}
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return refused(http.StatusUnauthorized, &wire.Error{
			Code: "certificate_required", Message: "This call needs the device's certificate.", Remedy: "Enrol first: portvakt-agent enroll URL CODE.",
		}, "")
	}
	id, err := a.cfg.CA.VerifyDevice(r.TLS.PeerCertificates)
	if err != nil {
		return refused(http.StatusUnauthorized, &wire.Error{
			Code: "certificate_unknown", Message: "The device's certificate was not issued by this gateway.", Remedy: "Enrol again with a new code.",
		}, "")
	}
	d, err := a.cfg.Store.Device(r.Context(), id.DeviceID)
	switch {
	case errors.Is(err, store.ErrNotFound), err == nil && d.KeyHash != id.KeyHash:
		return refused(http.StatusUnauthorized, &wire.Error{
			Code: "certificate_unknown", Message: "The gateway does not know this device.", Remedy: "Enrol again with a new code.",
		}, id.DeviceID)
	case err != nil:
		a.internal(w, "looking a device up", err)
		return store.Device{}, certs.DeviceIdentity{}, false
	case d.Revoked():
		a.refuseRevoked(w, r, d.ID, session.RevokedDecision(d, a.cfg.Now()))
		return store.Device{}, certs.DeviceIdentity{}, false
	}
	return d, id, true
}

// renew issues a new certificate for the same key, also to an expired one of a
// device that was away for less than 45 days.
func (a *API) renew(w http.ResponseWriter, r *http.Request) {
	d, _, ok := a.device(w, r)
	if !ok {
		return
	}
	if !a.renewals.allow(d.ID) {
		a.refuseDevice(w, r, d.ID, http.StatusTooManyRequests, &wire.Error{
			Code: "too_many_renewals", Message: "This laptop renews its certificate too often.", Remedy: "Check its clock; the agent tries again by itself.", Retry: true,
		})
		return
	}
	var req wire.RenewRequest
	if !a.read(w, r, &req, func(code, message string) { a.noteDevice(r, d.ID, code, message) }) {
		return
	}
	now := a.cfg.Now()
	pub, err := certs.ParseCSR(req.CSR)
	var hash [32]byte
	if err == nil {
		hash, err = certs.KeyHash(pub)
	}
	if err != nil || hash != d.KeyHash {
		a.refuseDevice(w, r, d.ID, http.StatusBadRequest, &wire.Error{
			Code: "bad_csr", Message: "A renewal keeps the device's key; this request is for another.", Remedy: "To change the key, enrol again with a new code.",
		})
		return
	}
	if away := now.Sub(d.LastSeen); away > UnseenLimit {
		a.refuseDevice(w, r, d.ID, http.StatusForbidden, &wire.Error{
			Code: "device_unseen", Message: "This laptop was away for more than 45 days.", Remedy: "Ask IT for a new enrolment code.",
		})
		return
	}
	if err := a.cfg.Store.TouchDevice(r.Context(), d.ID, now); err != nil {
		a.internal(w, "noting that a device was seen", err)
		return
	}
	a.grantCertificate(w, &audit.Record{Kind: audit.KindRenew, Device: d.ID, Remote: hostOf(r.RemoteAddr)}, d)
}

// connect registers a tunnel key.
func (a *API) connect(w http.ResponseWriter, r *http.Request) {
	d, id, ok := a.device(w, r)
	if !ok {
		return
	}
	if id.Expired {
		a.expired(w, r, d.ID)
		return
	}
	if !a.connects.allow(d.ID) {
		a.tooMany(w, r, d.ID)
		return
	}
	req, key, ok := a.readConnect(w, r, d.ID)
	if !ok {
		return
	}
	now := a.cfg.Now()
	token := randomToken()
	reg := store.Registration{
		DeviceID: d.ID, TunnelKey: key, PresharedKey: randomKey(), TokenHash: sha256.Sum256([]byte(token)),
		BootID: clean(req.BootID, 64), AgentVersion: clean(req.AgentVersion, 64),
		PostQuantum: r.TLS.CurveID == tls.X25519MLKEM768,
		CreatedAt:   now, ExpiresAt: now.Add(RegistrationLifetime),
	}
	rec := &audit.Record{
		Kind: audit.KindConnect, Device: d.ID, Remote: hostOf(r.RemoteAddr),
		Detail: map[string]string{"tunnel_key": req.TunnelKey, "agent_version": reg.AgentVersion, "key_exchange": r.TLS.CurveID.String(), "post_quantum": strconv.FormatBool(reg.PostQuantum)},
	}
	if err := a.cfg.Audit.Append(rec); err != nil {
		a.internal(w, "recording a connect", err)
		return
	}
	nonce := "n-" + randomHex()
	err := a.register(r, reg, session.Connection{Device: d, Nonce: nonce})
	switch {
	case errors.Is(err, store.ErrRevoked):
		d, err := a.cfg.Store.Device(r.Context(), d.ID)
		if err != nil {
			a.internal(w, "looking a revoked device up", err)
			return
		}
		a.refuseRevoked(w, r, d.ID, session.RevokedDecision(d, a.cfg.Now()))
		return
	case errors.Is(err, store.ErrKeyTaken):
		a.refuseDevice(w, r, d.ID, http.StatusConflict, &wire.Error{Code: "key_taken", Message: "The tunnel key is in use by another device.", Remedy: "Make a fresh key for every connect."})
		return
	case err != nil:
		a.internal(w, "registering a tunnel key", err)
		return
	}
	if !a.notRevoked(w, r, d.ID) {
		return
	}
	if err := a.cfg.Store.TouchDevice(r.Context(), d.ID, now); err != nil {
		a.log.Warn("noting that a device was seen", "device", d.ID, "err", err)
	}
	resp := wire.ConnectResponse{
		DeviceID: d.ID, Addresses: d.Addresses[:], Gateway: a.cfg.Tunnel,
		PresharedKey: base64.StdEncoding.EncodeToString(reg.PresharedKey[:]), PostQuantum: reg.PostQuantum,
		ControlToken: token, ExpiresAt: reg.ExpiresAt.UTC(), DNSSuffixes: append([]string{}, a.cfg.DNSSuffixes()...), RedirectPorts: append([]uint16{}, a.cfg.RedirectPorts...),
		PostureNonce: nonce, MTU: a.cfg.MTU,
	}
	a.answer(w, resp)
}

// notRevoked sees a revocation that was stored while the device connected: the
// peer is registered first and the device looked at after.
func (a *API) notRevoked(w http.ResponseWriter, r *http.Request, device string) bool {
	d, err := a.cfg.Store.Device(r.Context(), device)
	if err != nil {
		a.cfg.Sessions.Remove(device, policy.Decision{}) // nobody knows, so nobody gets in; it may connect again
		a.internal(w, "looking at a device that connected", err)
		return false
	}
	if d.Revoked() {
		dec := session.RevokedDecision(d, a.cfg.Now())
		a.cfg.Sessions.Remove(device, dec)
		a.refuseRevoked(w, r, device, dec)
		return false
	}
	return true
}

// readConnect reads what an agent asks for, or answers why it cannot have it.
func (a *API) readConnect(w http.ResponseWriter, r *http.Request, device string) (req wire.ConnectRequest, key [32]byte, ok bool) {
	if !a.read(w, r, &req, func(code, message string) { a.noteDevice(r, device, code, message) }) {
		return req, key, false
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(req.TunnelKey)
	if err != nil || len(raw) != 32 || [32]byte(raw) == [32]byte{} || req.TunnelKey == a.cfg.Tunnel.TunnelKey {
		a.refuseDevice(w, r, device, http.StatusBadRequest, &wire.Error{Code: "bad_request", Message: "tunnel_key is not a WireGuard public key in base64."})
		return req, key, false
	}
	if req.BootID == "" || len(req.BootID) > 64 {
		a.refuseDevice(w, r, device, http.StatusBadRequest, &wire.Error{Code: "bad_request", Message: "boot_id is required, at most 64 characters."})
		return req, key, false
	}
	return req, [32]byte(raw), true
}

// tunnel carries WireGuard's datagrams for a device whose network blocks UDP.
// What is inside is no more trusted for it: the certificate says who may hold a
// connection open here, the tunnel key who may come in.
func (a *API) tunnel(w http.ResponseWriter, r *http.Request) {
	d, id, ok := a.device(w, r)
	if !ok {
		return
	}
	if id.Expired {
		a.expired(w, r, d.ID)
		return
	}
	if !a.connects.allow(d.ID) {
		a.tooMany(w, r, d.ID)
		return
	}
	if err := a.cfg.WebSocket(w, r, d.ID); err != nil {
		// Every device behind the last one asks again and again: a metric counts
		// them, no line of the log for each.
		a.log.Debug("taking a WebSocket", "device", d.ID, "err", err)
		w.Header().Set("Retry-After", "5")
		a.fail(w, http.StatusServiceUnavailable, &wire.Error{
			Code: "unavailable", Message: "The gateway carries as many laptops' tunnels over TLS as it can, or it is being stopped.",
			Remedy: "Wait a moment; the agent tries again by itself.", Retry: true,
		})
	}
}

func (a *API) expired(w http.ResponseWriter, r *http.Request, device string) {
	a.refuseDevice(w, r, device, http.StatusUnauthorized, &wire.Error{
		Code: "certificate_expired", Message: "The device's certificate has expired.", Remedy: "Renew it first; the agent does so by itself.",
	})
}

func (a *API) tooMany(w http.ResponseWriter, r *http.Request, device string) {
	a.refuseDevice(w, r, device, http.StatusTooManyRequests, &wire.Error{
		Code: "too_many_connects", Message: "This laptop connects too often.", Remedy: "Wait a moment; the agent tries again by itself.", Retry: true,
	})
}

// register stores a registration and puts it in force, in one order for both.
func (a *API) register(r *http.Request, reg store.Registration, c session.Connection) error {
	ctx := r.Context()
	a.registerMu.Lock()
	defer a.registerMu.Unlock()
	resumed, err := a.cfg.Store.PutRegistration(ctx, reg)
	if err != nil {
		return err
	}
	c.Registration, c.Session, c.Remote = reg, resumed, hostOf(r.RemoteAddr)
	err = a.cfg.Sessions.Connect(c)
	if err != nil {
		// What could not be put in force must not be restored either.
		err = errors.Join(err, a.cfg.Store.DeleteRegistration(context.WithoutCancel(ctx), reg.TunnelKey))
	}
	return err
}

// clean keeps what a person can read of a self-chosen text.
func clean(s string, limit int) string {
	s = strings.ToValidUTF8(s, "")
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s)
	if r := []rune(s); len(r) > limit {
		s = string(r[:limit])
	}
	return strings.TrimSpace(s)
}

func randomHex() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func randomToken() string {
	b := randomKey()
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func randomKey() (k [32]byte) {
	rand.Read(k[:])
	return k
}
