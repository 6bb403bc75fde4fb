//go:build !unix

package proxy

func refusedUDP(error) bool { return false }
