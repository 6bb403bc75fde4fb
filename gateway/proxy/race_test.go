//go:build race

package proxy_test

const slack = 8
