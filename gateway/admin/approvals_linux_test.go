package admin_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/gateway/admin"
	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/internal/wire"
)

// Two administrators of the group, and one user who is in no group.
const (
	erik, maja, stranger = 54101, 54102, 54103
	groupID              = 10 // of uucp; any group that every Debian has
	groupName            = "uucp"
)

// dialAs connects to a Unix socket as another user of one group: these system
// calls change the calling thread alone.
func dialAs(socket string, uid, gid int) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (c net.Conn, err error) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
			for _, call := range [][4]uintptr{{unix.SYS_SETGROUPS, 0, 0, 0}, {unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)}, {unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)}} {
				if _, _, e := unix.RawSyscall(call[0], call[1], call[2], call[3]); e != 0 {
					err = e
					return
				}
			}
			fd, e := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if e != nil {
				err = e
				return
			}
			if err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
				_ = unix.Close(fd)
				return
			}
			f := os.NewFile(uintptr(fd), socket)
			defer f.Close()
			c, err = net.FileConn(f)
		}()
		<-done
		return c, err
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can be two administrators")
	}
}

// serveGroup runs a second admin socket on the rooms of g, for a group, with a
// clock of its own.
func (g *gw) serveGroup(clock func() time.Time) (socket string) {
	g.t.Helper()
	outside, err := os.MkdirTemp("", "pv")
	g.must(err)
	g.t.Cleanup(func() { os.RemoveAll(outside) })
	g.must(os.Chmod(outside, 0o755)) // others may walk through to the socket's directory
	socket = filepath.Join(outside, "run", "admin.sock")
	srv := admin.New(admin.Config{Socket: socket, Group: groupName, Store: g.store, Audit: g.audit, Sessions: g.sessions, Engine: g.engine, Now: clock})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	g.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			g.t.Error(err)
		}
	})
	for range 500 {
		if st, err := os.Stat(socket); err == nil && st.Mode().Perm() == 0o660 {
			return socket
		}
		time.Sleep(10 * time.Millisecond)
	}
	g.t.Fatal("the group's socket never came")
	return ""
}

func code(err error) string {
	var we *wire.Error
	if errors.As(err, &we) {
		return we.Code
	}
	return fmt.Sprint(err)
}

// What is recorded about somebody is erased by two administrators, under a name
// that tells nobody who it was.
func TestErasureTakesTwo(t *testing.T) {
	needRoot(t)
	g := newGateway(t)
	socket := g.serveGroup(func() time.Time { return now })
	as := func(uid int) *admin.Client { return admin.NewClientDialling(dialAs(socket, uid, groupID)) }
	ctx, e, m := t.Context(), as(erik), as(maja)
	device := g.connect("laptop-1")
	x := g.login(device.ID, "Anna Berg", "sales")
	tail := func() string {
		t.Helper()
		var b strings.Builder
		if err := e.AuditTail(ctx, &b, 0, false, false); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	if s := tail(); !strings.Contains(s, x.Subject.Key()) || !strings.Contains(s, "Anna Berg") || strings.Contains(s, `"sealed"`) {
		t.Fatalf("before: %s", s)
	}
	for _, bad := range []admin.Erase{{}, {Subject: "a", Device: "b"}} {
		if _, err := e.Erase(ctx, bad); code(err) != "bad_request" {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := e.Erase(ctx, admin.Erase{Subject: "https://idp#nobody"}); code(err) != "not_found" {
		t.Errorf("of nobody: %v", err)
	}
	act, err := e.Erase(ctx, admin.Erase{Subject: "Anna Berg", Reason: "she asked"})
	if err != nil || act.Status != "pending" || !strings.HasPrefix(act.Target, "p-") {
		t.Fatalf("%+v %v", act, err)
	}
	if _, err := e.Approve(ctx, act.ID); code(err) != "same_person" {
		t.Errorf("approved alone: %v", err)
	}
	if s := tail(); !strings.Contains(s, "Anna Berg") {
		t.Error("erased before it was approved")
	}
	if done, err := m.Approve(ctx, act.ID); err != nil || done.Status != "approved" {
		t.Errorf("%+v %v", done, err)
	}
	s := tail()
	if strings.Contains(s, x.Subject.Key()) || strings.Contains(s, "Anna Berg") || !strings.Contains(s, `"erased":true`) {
		t.Errorf("after: %s", s)
	}
	if !strings.Contains(s, `"kind":"erase","actor":"os:54102:`) || !strings.Contains(s, `"why":"she asked"`) || !strings.Contains(s, `"person":"`+act.Target+`"`) {
		t.Errorf("no record of it: %s", s)
	}
	if _, err := e.Erase(ctx, admin.Erase{Subject: x.Subject.Key()}); code(err) != "not_found" {
		t.Errorf("again: %v", err)
	}
	// Of a device there is what came before the login; two ask, one happens.
	act, err = e.Erase(ctx, admin.Erase{Device: device.ID})
	if err != nil || act.Status != "pending" {
		t.Fatalf("%+v %v", act, err)
	}
	if err := g.audit.Erase(act.Target, "os:0:root", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Approve(ctx, act.ID); code(err) != "erased" {
		t.Errorf("what is erased already: %v", err)
	}
}

// What a clock that leapt would destroy waits for two administrators.
func TestTrustingTheClockTakesTwo(t *testing.T) {
	needRoot(t)
	for name, file := range map[string]string{"leapt": `{"believed":"2020-01-01T00:00:00Z"}`, "damaged": "{"} {
		t.Run(name, func(t *testing.T) { trustClockTakesTwo(t, file) })
	}
}

func trustClockTakesTwo(t *testing.T, file string) {
	g := newGateway(t)
	socket := g.serveGroup(func() time.Time { return now })
	as := func(uid int) *admin.Client { return admin.NewClientDialling(dialAs(socket, uid, groupID)) }
	ctx, e, m := t.Context(), as(erik), as(maja)
	ask := func() (admin.Act, error) { return e.TrustClock(ctx, admin.TrustClock{Reason: "it was off"}) }
	if _, err := ask(); code(err) != "believed" {
		t.Errorf("a clock that did not leap: %v", err)
	}
	g.must(os.WriteFile(filepath.Join(g.dir, "audit", "clock.json"), []byte(file), 0o600))
	retaining, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- g.audit.Retain(retaining, audit.Retention{}) }()
	defer func() {
		stop()
		g.must(<-done)
	}()
	for range 1000 {
		if g.audit.ClockInDoubt() {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	act, err := ask()
	if err != nil || act.Status != "pending" || act.Kind != "trust_clock" {
		t.Fatalf("%+v %v", act, err)
	}
	if _, err := e.Approve(ctx, act.ID); code(err) != "same_person" || !g.audit.ClockInDoubt() {
		t.Errorf("approved alone: %v", err)
	}
	if done, err := m.Approve(ctx, act.ID); err != nil || done.Status != "approved" || g.audit.ClockInDoubt() {
		t.Errorf("%+v %v", done, err)
	}
	var b strings.Builder
	if err := e.AuditTail(ctx, &b, 0, false, false); err != nil || !strings.Contains(b.String(), `"outcome":"trusted_clock"`) || !strings.Contains(b.String(), `"why":"it was off"`) {
		t.Errorf("no record of it: %v %s", err, b.String())
	}
	if _, err := ask(); code(err) != "believed" {
		t.Errorf("again: %v", err)
	}
}

// An enrolment code is made for somebody: whose name it bears is sealed like
// what is recorded of their laptop, and goes with it, redeemed or not.
func TestInviteIsErasedWithItsDevice(t *testing.T) {
	needRoot(t)
	g := newGateway(t)
	socket := g.serveGroup(func() time.Time { return now })
	as := func(uid int) *admin.Client { return admin.NewClientDialling(dialAs(socket, uid, groupID)) }
	ctx, e, m := t.Context(), as(erik), as(maja)
	if _, err := g.Invite(ctx, admin.Invite{Name: "annas-laptop"}); err != nil {
		t.Fatal(err)
	}
	last := func() audit.Record {
		t.Helper()
		var found audit.Record
		if err := audit.Scan(g.audit.Path(), func(line []byte, r *audit.Record) bool {
			if strings.Contains(string(line), "annas-laptop") {
				t.Errorf("in the open: %s", line)
			}
			if r.Kind == audit.KindInvite {
				if _, err := g.audit.Reveal(line, r); err != nil {
					t.Error(err)
				}
				found = *r
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		return found
	}
	code := last()
	if code.Detail["name"] != "annas-laptop" || !strings.HasPrefix(code.Device, "dev-") || !strings.HasPrefix(code.Person, "p-") {
		t.Fatalf("recorded: %+v", code)
	}
	act, err := e.Erase(ctx, admin.Erase{Device: code.Device, Reason: "she never came"})
	if err != nil || act.Target != code.Person {
		t.Fatalf("%+v %v", act, err)
	}
	if _, err := m.Approve(ctx, act.ID); err != nil {
		t.Fatal(err)
	}
	if r := last(); !r.Erased || r.Detail != nil || r.Device != code.Device {
		t.Errorf("after: %+v", r)
	}
}

func TestTwoAdministrators(t *testing.T) {
	needRoot(t)
	g := newGateway(t)
	var at atomic.Int64
	at.Store(now.UnixNano())
	socket := g.serveGroup(func() time.Time { return time.Unix(0, at.Load()) })
	as := func(uid int) *admin.Client { return admin.NewClientDialling(dialAs(socket, uid, groupID)) }
	ctx, e, m := t.Context(), as(erik), as(maja)
	on := func() admin.Lockdown {
		t.Helper()
		l, err := e.Lockdown(ctx, admin.Lockdown{Scope: "all"})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	inForce := func(want int) {
		t.Helper()
		if got := len(g.sessions.Lockdowns()); got != want {
			t.Fatalf("%d lockdowns are in force, want %d", got, want)
		}
	}
	lock := on()
	if !strings.HasPrefix(lock.By, "os:54101:") {
		t.Errorf("by %s", lock.By)
	}

	// Asked for, and asked for again by either: one act.
	act, err := e.LiftLockdown(ctx, lock.ID, admin.Revoke{Reason: "over"})
	if err != nil || act.Status != "pending" || act.Reason != "over" {
		t.Fatalf("%+v %v", act, err)
	}
	if again, err := m.LiftLockdown(ctx, lock.ID, admin.Revoke{}); err != nil || again.ID != act.ID || again.Status != "pending" {
		t.Errorf("%+v %v", again, err)
	}
	inForce(1)
	if _, err := e.Approve(ctx, act.ID); code(err) != "same_person" {
		t.Errorf("approved alone: %v", err)
	}
	inForce(1)
	if _, err := m.Approve(ctx, "act-none"); code(err) != "not_found" {
		t.Error(err)
	}
	done, err := m.Approve(ctx, act.ID)
	if err != nil || done.Status != "approved" || !strings.HasPrefix(done.DecidedBy, "os:54102:") || done.DecidedAt == nil {
		t.Errorf("%+v %v", done, err)
	}
	inForce(0)
	for _, again := range []func(context.Context, string) (admin.Act, error){m.Reject, e.Reject} {
		if _, err := again(ctx, act.ID); code(err) != "decided" {
			t.Errorf("decided twice: %v", err)
		}
	}
	if _, err := m.Approve(ctx, act.ID); code(err) != "decided" {
		t.Errorf("approved twice: %v", err)
	}

	// Rejected by the other, taken back by oneself, expired.
	lock = on()
	for _, who := range []*admin.Client{m, e} {
		act, err = e.LiftLockdown(ctx, lock.ID, admin.Revoke{})
		g.must(err)
		if out, err := who.Reject(ctx, act.ID); err != nil || out.Status != "rejected" {
			t.Errorf("%+v %v", out, err)
		}
		if _, err := m.Approve(ctx, act.ID); code(err) != "decided" {
			t.Errorf("approved after it was rejected: %v", err)
		}
	}
	at.Add(int64(time.Second)) // the list is by time
	act, err = e.LiftLockdown(ctx, lock.ID, admin.Revoke{})
	g.must(err)
	at.Add(int64(24 * time.Hour))
	if _, err := m.Approve(ctx, act.ID); code(err) != "decided" {
		t.Errorf("approved after a day: %v", err)
	}
	inForce(1)
	all, err := e.Approvals(ctx)
	if err != nil || len(all.Items) != 4 || all.Items[0].Status != "expired" || all.Items[0].ID != act.ID {
		t.Errorf("%+v %v", all, err)
	}
	if fresh, err := e.LiftLockdown(ctx, lock.ID, admin.Revoke{}); err != nil || fresh.ID == act.ID {
		t.Errorf("an expired act was asked for again: %+v %v", fresh, err)
	}

	want := []string{"requested os:54101", "refused os:54101", "approved os:54102"}
	var got []string
	var off *audit.Record
	for _, r := range g.records() {
		if r.Kind == audit.KindApproval {
			got = append(got, r.Outcome+" "+r.Actor[:8])
		}
		if r.Kind == audit.KindLockdown && r.Outcome == "off" {
			off = &r
		}
	}
	if len(got) < 3 || fmt.Sprint(got[:3]) != fmt.Sprint(want) {
		t.Errorf("recorded %v, want first %v", got, want)
	}
	if off == nil || !strings.HasPrefix(off.Actor, "os:54102:") || !strings.HasPrefix(off.Detail["requested_by"], "os:54101:") || off.Detail["why"] != "over" {
		t.Errorf("the record of the end: %+v", off)
	}
}

// Of many who approve and reject at once, one decides.
func TestOneDecides(t *testing.T) {
	needRoot(t)
	g := newGateway(t)
	socket := g.serveGroup(func() time.Time { return now })
	e, m := admin.NewClientDialling(dialAs(socket, erik, groupID)), admin.NewClientDialling(dialAs(socket, maja, groupID))
	for range 5 {
		l, err := e.Lockdown(t.Context(), admin.Lockdown{Scope: "all"})
		g.must(err)
		act, err := e.LiftLockdown(t.Context(), l.ID, admin.Revoke{})
		g.must(err)
		var approved, rejected atomic.Int32
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if _, err := m.Approve(context.Background(), act.ID); err == nil {
					approved.Add(1)
				}
			})
			wg.Go(func() {
				if _, err := e.Reject(context.Background(), act.ID); err == nil {
					rejected.Add(1)
				}
			})
		}
		wg.Wait()
		left := len(g.sessions.Lockdowns())
		if approved.Load()+rejected.Load() != 1 || int(rejected.Load()) != left {
			t.Fatalf("%d approved, %d rejected, %d lockdowns left", approved.Load(), rejected.Load(), left)
		}
		for _, l := range g.sessions.Lockdowns() {
			_, err := g.sessions.LiftLockdown(t.Context(), session.Lift{ID: l.ID, By: "test", At: now})
			g.must(err)
		}
	}
}

func TestBreakGlass(t *testing.T) {
	needRoot(t)
	g := newGateway(t)
	var at atomic.Int64
	at.Store(now.UnixNano())
	socket := g.serveGroup(func() time.Time { return time.Unix(0, at.Load()) })
	e, m := admin.NewClientDialling(dialAs(socket, erik, groupID)), admin.NewClientDialling(dialAs(socket, maja, groupID))
	ctx := t.Context()
	for _, bad := range []admin.BreakGlass{{}, {Minutes: 5}, {Reason: " ", Minutes: 5}, {Reason: "x"}, {Reason: "x", Minutes: -1}, {Reason: "x", Minutes: 61}, {Reason: "x", Minutes: 5, By: "os:0:root"}} {
		if _, err := e.BreakGlass(ctx, bad); code(err) != "bad_request" {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	on := func() admin.Lockdown {
		l, err := e.Lockdown(ctx, admin.Lockdown{Scope: "app", Value: "crm"})
		g.must(err)
		return l
	}
	lock, before := on(), on()
	asked, err := e.LiftLockdown(ctx, before.ID, admin.Revoke{})
	g.must(err)
	times, said := 0, []admin.BreakGlass(nil)
	m.Announce = func(running []admin.BreakGlass) { times, said = times+1, running }
	b, err := e.BreakGlass(ctx, admin.BreakGlass{Reason: "ingen är vaken\n", Minutes: 10})
	g.must(err)
	if _, err := m.Device(ctx, "nobody"); err == nil || times != 1 || len(said) != 1 || said[0].By != b.By || said[0].Reason != "ingen är vaken" {
		t.Errorf("another administrator is told %d times: %+v (%v)", times, said, err)
	}
	b, err = e.BreakGlass(ctx, admin.BreakGlass{Reason: "nobody awake", Minutes: 10})
	if err != nil || !b.Until.Equal(now.Add(10*time.Minute)) || !strings.HasPrefix(b.By, "os:54101:") {
		t.Fatalf("%+v %v", b, err)
	}
	if all, err := m.Lockdowns(ctx); err != nil || times != 1 || len(all.BreakGlass) != 1 || all.BreakGlass[0].Reason != "nobody awake" {
		t.Errorf("announced: %+v %v", all, err)
	}
	if a, err := e.LiftLockdown(ctx, lock.ID, admin.Revoke{}); err != nil || a.Status != "break_glass" {
		t.Errorf("alone: %+v %v", a, err)
	}
	if a, err := e.Approve(ctx, asked.ID); err != nil || a.Status != "break_glass" {
		t.Errorf("what was asked for before: %+v %v", a, err)
	}
	if left := g.sessions.Lockdowns(); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
	// It is nobody else's, and ends.
	lock = on()
	if a, err := m.LiftLockdown(ctx, lock.ID, admin.Revoke{}); err != nil || a.Status != "pending" {
		t.Errorf("another's break-glass helped: %+v %v", a, err)
	}
	if _, err := m.Approve(ctx, asked.ID); code(err) != "decided" {
		t.Error(err)
	}
	at.Add(int64(10 * time.Minute))
	lock = on()
	if a, err := e.LiftLockdown(ctx, lock.ID, admin.Revoke{}); err != nil || a.Status != "pending" {
		t.Errorf("after its time: %+v %v", a, err)
	}
	if all, err := m.Lockdowns(ctx); err != nil || len(all.BreakGlass) != 0 {
		t.Errorf("announced after its time: %+v %v", all, err)
	}
	var kinds []string
	for _, r := range g.records() {
		if r.Kind == audit.KindBreakGlass && r.Detail["reason"] == "nobody awake" && r.Detail["until"] == "2026-11-23T10:10:00Z" {
			kinds = append(kinds, string(r.Kind))
		}
		if r.Kind == audit.KindLockdown && r.Outcome == "off" && r.Detail["break_glass"] == "nobody awake" {
			kinds = append(kinds, "off")
		}
	}
	if fmt.Sprint(kinds) != "[break_glass off off]" {
		t.Errorf("recorded %v", kinds)
	}
	// Without a record there is none.
	g.must(g.audit.Close())
	if _, err := m.BreakGlass(ctx, admin.BreakGlass{Reason: "x", Minutes: 5}); err == nil {
		t.Error("an unrecorded break-glass")
	}
	if all, err := m.Lockdowns(ctx); err != nil || len(all.BreakGlass) != 0 {
		t.Errorf("%+v %v", all, err)
	}
}

// The socket of a group is for its members alone, and never made in a place of
// others.
func TestGroupSocket(t *testing.T) {
	needRoot(t)
	g := newGateway(t)
	socket := g.serveGroup(func() time.Time { return now })
	if st, err := os.Stat(filepath.Dir(socket)); err != nil || st.Mode().Perm() != 0o750 {
		t.Errorf("the directory: %v %v", st.Mode(), err)
	}
	if c, err := dialAs(socket, stranger, stranger)(t.Context()); err == nil {
		c.Close()
		t.Error("a stranger reached the socket")
	}
	_, err := admin.NewClientDialling(dialAs(socket, maja, groupID)).Devices(t.Context())
	g.must(err)

	for name, prepare := range map[string]func(dir string) error{
		"open to others": func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 0, groupID), os.Chmod(dir, 0o755))
		},
		"the group may write": func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 0, groupID), os.Chmod(dir, 0o770))
		},
		"of another group": func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o750)) },
		"of another user":  func(dir string) error { return errors.Join(os.Mkdir(dir, 0o750), os.Chown(dir, maja, groupID)) },
		"a link":           func(dir string) error { return os.Symlink(os.TempDir(), dir) },
		"something is in place": func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o750), os.Chown(dir, 0, groupID), os.WriteFile(filepath.Join(dir, "admin.sock"), []byte("precious"), 0o600))
		},
	} {
		dir := filepath.Join(t.TempDir(), "run")
		g.must(prepare(dir))
		before, err := os.Stat(dir)
		g.must(err)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		err = admin.New(admin.Config{Socket: filepath.Join(dir, "admin.sock"), Group: groupName}).Run(ctx)
		cancel()
		after, serr := os.Stat(dir)
		if err == nil || serr != nil || after.Mode() != before.Mode() {
			t.Errorf("%s: %v, mode %v then %v", name, err, before.Mode(), after.Mode())
		}
		if name == "something is in place" {
			if b, err := os.ReadFile(filepath.Join(dir, "admin.sock")); err != nil || string(b) != "precious" {
				t.Errorf("%s was removed: %v", name, err)
			}
		}
	}
}
