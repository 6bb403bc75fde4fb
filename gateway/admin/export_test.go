package admin

import (
	"context"
	"net"
	"net/http"
)

// NewClientDialling returns a Client that reaches its server over dial.
func NewClientDialling(dial func(context.Context) (net.Conn, error)) *Client {
	c := &Client{}
	c.http.Transport = &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}
	return c
}
