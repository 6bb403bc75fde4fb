package agent

import (
	"strconv"
	"time"

	"golang.org/x/sys/windows"
)

// bootID is the minute of the boot: the two clocks it comes from drift against
// each other. Where the rounding falls the other way, the person logs in again.
func bootID() (string, error) {
	at := time.Now().Add(-windows.DurationSinceBoot()).Round(time.Minute)
	return "boot-" + strconv.FormatInt(at.Unix(), 10), nil
}
