// Package idplogin is the person at the browser: it opens an identity
// provider's login page, fills the form in and follows the redirects up to the
// one that leads back to the application. The demo and the end-to-end tests
// log in with it through a real identity provider.
package idplogin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"

	"golang.org/x/net/html"
)

// ErrRefused is returned when the identity provider showed its form again,
// which is how it says that email and password do not belong together.
var ErrRefused = errors.New("the identity provider refused the password")

// maxHops bounds redirects and pages, so that a provider that sends its
// visitors round in circles is an error and not a hang.
const maxHops = 20

// Login opens authURL, types email and password into the first form with a
// password field, and returns the URL that the provider finally redirects to:
// the redirect_uri of authURL with code and state (or with error). It does not
// open that URL; whoever listens there is the caller's business. A provider
// that redirects at once (a login it remembers, or an error) needs no form.
func Login(ctx context.Context, authURL, email, password string) (callbackURL string, err error) {
	u, err := url.Parse(authURL)
	if err != nil {
		return "", fmt.Errorf("reading the login URL: %w", err)
	}
	redirect := u.Query().Get("redirect_uri")
	if redirect == "" {
		return "", errors.New("the login URL names no redirect_uri")
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		return "", err
	}
	b := &browser{redirect: redirect, client: &http.Client{
		Jar:           jar,
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	page, callback, err := b.open(ctx, http.MethodGet, u, nil)
	if err != nil || callback != "" {
		return callback, err
	}
	form, ok := findForm(page)
	if !ok {
		return "", fmt.Errorf("%s shows no form with a password: %s", page.url.Redacted(), page.text())
	}
	form.values.Set(form.login, email)
	form.values.Set(form.password, password)
	action, err := page.url.Parse(form.action)
	if err != nil {
		return "", fmt.Errorf("reading the form's action: %w", err)
	}
	page, callback, err = b.open(ctx, http.MethodPost, action, form.values)
	if err != nil || callback != "" {
		return callback, err
	}
	if _, again := findForm(page); again {
		return "", ErrRefused
	}
	return "", fmt.Errorf("the login ended at %s: %s", page.url.Redacted(), page.text())
}

// browser holds the cookies of one login.
type browser struct {
	client   *http.Client
	redirect string
}

// page is an answer that was shown.
type page struct {
	url  *url.URL
	root *html.Node
}

// open asks for u and follows redirects. It returns either a page or the URL
// of the application's callback.
func (b *browser) open(ctx context.Context, method string, u *url.URL, form url.Values) (*page, string, error) {
	for range maxHops {
		req, err := http.NewRequestWithContext(ctx, method, u.String(), strings.NewReader(form.Encode()))
		if err != nil {
			return nil, "", err
		}
		if method == http.MethodPost {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		resp, err := b.client.Do(req)
		if err != nil {
			return nil, "", fmt.Errorf("opening the login page: %w", err)
		}
		root, err := html.Parse(io.LimitReader(resp.Body, 1<<20))
		resp.Body.Close()
		if err != nil {
			return nil, "", fmt.Errorf("reading the login page: %w", err)
		}
		if resp.StatusCode/100 != 3 {
			p := &page{u, root}
			// A form may come with 401: "try again".
			if _, ok := findForm(p); !ok && resp.StatusCode != http.StatusOK {
				return nil, "", fmt.Errorf("%s answered %s: %s", u.Redacted(), resp.Status, p.text())
			}
			return p, "", nil
		}
		next, err := resp.Location()
		if err != nil {
			return nil, "", fmt.Errorf("following a redirect of the login page: %w", err)
		}
		if base, _, _ := strings.Cut(next.String(), "?"); base == b.redirect {
			return nil, next.String(), nil
		}
		method, u, form = http.MethodGet, next, nil
	}
	return nil, "", fmt.Errorf("the login page redirected more than %d times", maxHops)
}

// text is what a person would read on the page, in one short line.
func (p *page) text() string {
	var b strings.Builder
	for n := range p.root.Descendants() {
		if n.Type == html.TextNode && n.Parent.Data != "script" && n.Parent.Data != "style" && n.Parent.Data != "title" {
			b.WriteString(n.Data + " ")
		}
	}
	line := []rune(strings.Join(strings.Fields(b.String()), " "))
	return string(line[:min(len(line), 300)])
}

// form is a login form: where it goes, what it already holds, and the names of
// the two fields a person fills in.
type form struct {
	action, login, password string
	values                  url.Values
}

// findForm returns the first form that has a password field.
func findForm(p *page) (form, bool) {
	for n := range p.root.Descendants() {
		if n.Type != html.ElementNode || n.Data != "form" {
			continue
		}
		f := form{action: attr(n, "action"), values: url.Values{}}
		for in := range n.Descendants() {
			if in.Type != html.ElementNode || in.Data != "input" || attr(in, "name") == "" {
				continue
			}
			switch name := attr(in, "name"); attr(in, "type") {
			case "password":
				f.password = name
			case "hidden":
				f.values.Set(name, attr(in, "value"))
			case "text", "email", "":
				f.login = name
			}
		}
		if f.password != "" && f.login != "" {
			return f, true
		}
	}
	return form{}, false
}

func attr(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}
