//go:build race

package tunnel_test

// transfer is small under the race detector, which slows ciphers down tenfold.
const transfer = 1 << 20

// scale divides the flood; the race detector slows the key exchanges tenfold.
const scale = 5

// floodRate is initiations a second.
const floodRate = 1_500
