package login

import (
	"context"
	"fmt"
	"net/url"
	"os/exec"
	"runtime"
	"time"
)

// OpenBrowser shows an https (or http) page in the person's own browser. It
// waits a moment for the opener's verdict and not for the browser.
func OpenBrowser(ctx context.Context, page string) error {
	u, err := url.Parse(page)
	// Openers run other schemes as programs.
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" {
		return fmt.Errorf("opening the browser: %q is not a web page", page)
	}
	var name string
	var args []string
	switch runtime.GOOS {
	case "darwin":
		name, args = "open", []string{u.String()}
	case "windows":
		name, args = "rundll32", []string{"url.dll,FileProtocolHandler", u.String()}
	default:
		name, args = "xdg-open", []string{u.String()}
	}
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("opening the browser: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("opening the browser: %s: %w", name, err)
		}
	case <-time.After(2 * time.Second): // some openers stay until the browser ends
	case <-ctx.Done():
	}
	return nil
}
