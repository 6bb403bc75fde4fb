//go:build !linux

package session

import "time"

var start = time.Now()

// sinceBoot stands still during suspend on some systems; gateways run on Linux,
// and this only lets the package build elsewhere.
func sinceBoot() time.Duration { return time.Since(start) }
