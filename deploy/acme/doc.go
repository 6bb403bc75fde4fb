// Package acme holds the test of the gateway's public certificates against a
// real ACME server, pebble, over TLS-ALPN-01 on the gateway's own port. It is
// here so that pebble stays out of the product's module.
package acme
