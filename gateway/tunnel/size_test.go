//go:build !race

package tunnel_test

// transfer is the size of the test's transfers, in bytes.
const transfer = 10 << 20

// scale divides the flood; the race detector slows the key exchanges tenfold.
const scale = 1

// floodRate is initiations a second.
const floodRate = 20_000
