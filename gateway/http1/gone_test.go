package http1

import (
	"net/http"
	"testing"
	"testing/synctest"
)

// Who asks to be told that the other end went away is told also when it went
// before.
func TestGoneBeforeItWasAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := 0
		here, wait := serving(&Server{Handler: handler(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done() // as a decision that takes long
			w.(interface{ OnGone(fn func()) }).OnGone(func() { told++ })
		})})
		say(t, here, simple)
		_ = here.Close()
		wait()
		if told != 1 {
			t.Errorf("told %d times that the other end went away", told)
		}
	})
}
