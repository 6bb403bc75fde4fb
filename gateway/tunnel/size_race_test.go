//go:build race

package tunnel_test

// transfer is small under the race detector, which slows ciphers down tenfold.
const transfer = 1 << 20
