package identity

import (
	"strings"
	"unicode"

	"github.com/portvakt/portvakt/policy"
)

// The codes of Error.
const (
	// CodeUnavailable: the provider does not answer, or not sensibly.
	CodeUnavailable = string(policy.ReasonIDPUnavailable)
	// CodeBadRedirect: the agent's return address is not acceptable.
	CodeBadRedirect = "bad_redirect"
	// CodeUnknownState: no such login of this device waits to be finished.
	CodeUnknownState = "unknown_state"
	// CodeRefused: the provider refused the person, or the code.
	CodeRefused = "idp_refused"
	// CodeTokenInvalid: the answer or its ID token does not hold.
	CodeTokenInvalid = "token_invalid"
	// CodeTooMany: the gateway holds as many unfinished logins as it will.
	CodeTooMany = "too_many_logins"
)

// Error is a login that did not work, told to people.
type Error struct {
	Code            string
	Message, Remedy string
	// Err is the cause, for the log; it holds no token, code or secret. May
	// be nil.
	Err error
	// Retry says that the same may work later without a change.
	Retry bool
}

// Error returns the message and the cause.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Code + ": " + e.Message
	}
	return e.Code + ": " + e.Message + " (" + clean(e.Err.Error(), 400) + ")"
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func unavailable(err error) *Error {
	said := policy.Reasons[policy.ReasonIDPUnavailable][policy.Languages[0]]
	return &Error{Code: CodeUnavailable, Message: said.Message, Remedy: said.Remedy, Err: err, Retry: true}
}

func refused(code, description string) *Error {
	said := clean(code, 60)
	if description != "" {
		if said != "" {
			said += ": "
		}
		said += clean(description, 300)
	}
	return &Error{
		Code: CodeRefused, Message: "Your company's login service refused the login. It said: " + said,
		Remedy: "Log in again with: portvakt-agent login. If it is refused again, ask your IT support.",
	}
}

func tokenInvalid(message string, err error) *Error {
	return &Error{
		Code: CodeTokenInvalid, Message: message,
		Remedy: "Log in again with: portvakt-agent login. If it happens again, tell your IT support.",
		Err:    err,
	}
}

// clean makes text of a stranger fit for one line of a log or terminal, at
// most max runes long.
func clean(s string, max int) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n == max {
			b.WriteString("…")
			break
		}
		// IsPrint leaves out controls, line separators and the marks that
		// turn the direction of text.
		if !unicode.IsPrint(r) {
			r = ' '
		}
		b.WriteRune(r)
		n++
	}
	return strings.TrimSpace(b.String())
}
