package pages_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// browser is one headless Chromium, spoken to over a pipe in the DevTools
// protocol: JSON texts that end in NUL, to its descriptor 3 and from its 4. No
// port is open, and nothing is needed but the standard library.
type browser struct {
	ctx context.Context
	in  io.Writer

	mu      sync.Mutex // guards what follows, and writing to in
	last    int
	answers map[int]chan message
	tabs    map[string]*tab
	err     error
	ended   chan struct{}
}

// message is a command's answer or an event.
type message struct {
	ID        int             `json:"id"`
	SessionID string          `json:"sessionId"`
	Method    string          `json:"method"`
	Params    json.RawMessage `json:"params"`
	Result    json.RawMessage `json:"result"`
	Error     *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// flags let Chromium do nothing but what it is told: no names are resolved, so
// that it reaches nothing but addresses of this machine.
var flags = []string{
	"--headless", "--remote-debugging-pipe", "--no-first-run", "--no-default-browser-check", "--disable-background-networking",
	"--disable-component-update", "--disable-default-apps", "--disable-extensions", "--disable-sync", "--disable-breakpad", "--metrics-recording-only",
	"--no-pings", "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--password-store=basic", "--use-mock-keychain",
	"--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb", "--hide-scrollbars", "--lang=en-GB",
}

// startBrowser starts Chromium with an empty profile; it ends with the test.
func startBrowser(t *testing.T, path string) *browser {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	home := t.TempDir()
	args := append([]string{"--user-data-dir=" + filepath.Join(home, "profile")}, flags...)
	if os.Getuid() == 0 {
		args = append(args, "--no-sandbox") // Chromium's sandbox does not run as root
	}
	theirIn, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, path, append(args, "about:blank")...)
	cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "TMPDIR=" + home}
	cmd.ExtraFiles = []*os.File{theirIn, theirOut}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	noise, err := os.Create(filepath.Join(home, "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = noise
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", path, err)
	}
	theirIn.Close()
	theirOut.Close()
	b := &browser{ctx: ctx, in: in, answers: map[int]chan message{}, tabs: map[string]*tab{}, ended: make(chan struct{})}
	go b.read(out)
	t.Cleanup(func() {
		in.Close() // Chromium ends when its pipe does
		gone := time.AfterFunc(5*time.Second, cancel)
		<-b.ended
		_ = cmd.Wait()
		gone.Stop()
		cancel()
		out.Close()
		noise.Close()
		if t.Failed() {
			if said, err := os.ReadFile(noise.Name()); err == nil && len(said) > 0 {
				t.Logf("Chromium said:\n%s", said)
			}
		}
	})
	return b
}

// read hands out what Chromium says until it ends.
func (b *browser) read(out io.Reader) {
	defer close(b.ended)
	for r := bufio.NewReaderSize(out, 1<<16); ; {
		text, err := r.ReadBytes(0)
		if err != nil {
			b.mu.Lock()
			b.err = fmt.Errorf("the pipe to Chromium: %w", err)
			b.mu.Unlock()
			return
		}
		var m message
		if err := json.Unmarshal(text[:len(text)-1], &m); err != nil {
			continue
		}
		b.mu.Lock()
		if m.ID != 0 {
			if c := b.answers[m.ID]; c != nil {
				c <- m
			}
			delete(b.answers, m.ID)
		} else if tab := b.tabs[m.SessionID]; tab != nil {
			tab.take(m)
		}
		b.mu.Unlock()
	}
}

// call gives a command and waits for its answer. Session "" is the browser.
func (b *browser) call(session, method string, params, result any) error {
	command := map[string]any{"method": method, "params": params}
	if params == nil {
		command["params"] = struct{}{}
	}
	if session != "" {
		command["sessionId"] = session
	}
	answer := make(chan message, 1)
	b.mu.Lock()
	b.last++
	command["id"] = b.last
	b.answers[b.last] = answer
	text, err := json.Marshal(command)
	if err == nil {
		_, err = b.in.Write(append(text, 0))
	}
	b.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	select {
	case m := <-answer:
		if m.Error != nil {
			return fmt.Errorf("%s: %s", method, m.Error.Message)
		}
		if result == nil {
			return nil
		}
		return json.Unmarshal(m.Result, result)
	case <-b.ended:
		return fmt.Errorf("%s: %w", method, b.err)
	case <-b.ctx.Done():
		return fmt.Errorf("%s: %w", method, b.ctx.Err())
	}
}

// tab is one page of the browser, with what happened in it since it was opened
// or last asked.
type tab struct {
	b       *browser
	session string
	loaded  chan struct{} // capacity 1

	// Guarded by b.mu.
	requests []string
	said     []string // errors and warnings of the console and of the browser
}

func (b *browser) open() (*tab, error) {
	var target struct{ TargetID string }
	if err := b.call("", "Target.createTarget", map[string]any{"url": "about:blank"}, &target); err != nil {
		return nil, err
	}
	var attached struct{ SessionID string }
	if err := b.call("", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached); err != nil {
		return nil, err
	}
	p := &tab{b: b, session: attached.SessionID, loaded: make(chan struct{}, 1)}
	b.mu.Lock()
	b.tabs[p.session] = p
	b.mu.Unlock()
	for _, method := range []string{"Page.enable", "Runtime.enable", "Log.enable", "Network.enable"} {
		if err := p.call(method, nil, nil); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// take notes an event; b.mu is held.
func (p *tab) take(m message) {
	var e struct {
		Request struct{ URL string }
		Entry   struct{ Level, Text string }
	}
	switch m.Method {
	case "Page.loadEventFired":
		select {
		case p.loaded <- struct{}{}:
		default:
		}
	case "Network.requestWillBeSent":
		if json.Unmarshal(m.Params, &e) == nil {
			p.requests = append(p.requests, e.Request.URL)
		}
	case "Log.entryAdded":
		if json.Unmarshal(m.Params, &e) == nil {
			p.said = append(p.said, e.Entry.Level+": "+e.Entry.Text)
		}
	case "Runtime.consoleAPICalled", "Runtime.exceptionThrown":
		p.said = append(p.said, m.Method+": "+string(m.Params))
	}
}

func (p *tab) call(method string, params, result any) error {
	return p.b.call(p.session, method, params, result)
}

// visit loads an address and returns once it is all there.
func (p *tab) visit(url string) error {
	p.b.mu.Lock()
	p.requests, p.said = nil, nil
	p.b.mu.Unlock()
	select {
	case <-p.loaded:
	default:
	}
	var went struct{ ErrorText string }
	if err := p.call("Page.navigate", map[string]any{"url": url}, &went); err != nil {
		return err
	}
	if went.ErrorText != "" {
		return fmt.Errorf("loading %s: %s", url, went.ErrorText)
	}
	select {
	case <-p.loaded:
		return nil
	case <-p.b.ended:
		return p.b.err
	case <-p.b.ctx.Done():
		return p.b.ctx.Err()
	}
}

// happened returns what the page asked for and what the console says of it.
func (p *tab) happened() (requests, said []string) {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	return p.requests, p.said
}

// show sets how wide the screen is and what the person prefers: CSS media
// features such as prefers-color-scheme.
func (p *tab) show(width int, media map[string]string) error {
	features := []map[string]string{}
	for name, value := range media {
		features = append(features, map[string]string{"name": name, "value": value})
	}
	return errors.Join(
		p.call("Emulation.setEmulatedMedia", map[string]any{"features": features}, nil),
		p.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false}, nil),
	)
}

// eval runs an expression in the page, or in the world with that id. It comes
// through the debugger, so that the page's policy does not forbid it.
func (p *tab) eval(world int, expression string, result any) error {
	params := map[string]any{"expression": expression, "awaitPromise": true, "returnByValue": true}
	if world != 0 {
		params["contextId"] = world
	}
	var answer struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	if err := p.call("Runtime.evaluate", params, &answer); err != nil {
		return err
	}
	if e := answer.ExceptionDetails; e != nil {
		return fmt.Errorf("evaluating: %s %s", e.Text, e.Exception.Description)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(answer.Result.Value, result)
}

// world makes a place for scripts of the test that the page cannot see.
func (p *tab) world() (int, error) {
	var tree struct {
		FrameTree struct{ Frame struct{ ID string } }
	}
	if err := p.call("Page.getFrameTree", nil, &tree); err != nil {
		return 0, err
	}
	var made struct{ ExecutionContextID int }
	err := p.call("Page.createIsolatedWorld", map[string]any{"frameId": tree.FrameTree.Frame.ID, "worldName": "test"}, &made)
	return made.ExecutionContextID, err
}

// press types a key: Tab, Enter.
func (p *tab) press(key string, code int) error {
	down := map[string]any{"type": "rawKeyDown", "key": key, "code": key, "windowsVirtualKeyCode": code}
	up := map[string]any{"type": "keyUp", "key": key, "code": key, "windowsVirtualKeyCode": code}
	return errors.Join(p.call("Input.dispatchKeyEvent", down, nil), p.call("Input.dispatchKeyEvent", up, nil))
}

// picture writes the whole page as a PNG file.
func (p *tab) picture(file string) error {
	var shot struct{ Data string }
	if err := p.call("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true}, &shot); err != nil {
		return err
	}
	data, err := base64.StdEncoding.DecodeString(shot.Data)
	if err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}
