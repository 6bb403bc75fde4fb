//go:build !race

package tunnel_test

// transfer is the size of the test's transfers, in bytes.
const transfer = 10 << 20
