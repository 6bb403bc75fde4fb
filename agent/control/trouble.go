package control

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"

	"github.com/portvakt/portvakt/internal/wire"
)

// Trouble is what stands between an agent and its gateway, in words for the
// person at the laptop.
type Trouble struct {
	// Code is one of dns, refused, unreachable, timeout, clock, untrusted,
	// tls_inspected (untrusted, made for the gateway's name by somebody else),
	// gateway (it answered with an error), proxy (the one of HTTPS_PROXY cannot be
	// reached), proxy_refused (it does not carry this), silent, error.
	Code    string `json:"code"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
}

// Diagnose tells apart the usual causes of a failed call.
func Diagnose(err error) Trouble {
	var (
		dns       *net.DNSError
		clock     *ClockError
		untrusted *UntrustedError
		refused   *wire.Error
		timeout   net.Error
		proxy     *net.OpError
		carrier   *ProxyError
	)
	switch {
	case errors.As(err, &proxy) && proxy.Op == "proxyconnect": // whatever is in it, it is not the gateway's
		return Trouble{
			"proxy", "The web proxy that HTTPS_PROXY names for this laptop cannot be used: " + proxy.Err.Error() + ".",
			"Check HTTPS_PROXY where the agent is started, or unset it if this network needs none. Your IT support knows.",
		}
	case errors.As(err, &carrier):
		return Trouble{
			"proxy_refused", carrier.Error() + ".",
			"Ask whoever runs the proxy to let the gateway's address through; if it wants a name and a password, HTTPS_PROXY has to carry them. Your IT support knows.",
		}
	case errors.As(err, &clock):
		return Trouble{
			"clock", "This laptop's clock and the gateway's certificate do not agree: " + clock.Error() + ".",
			"Set the clock to the right time. If it is right, tell your IT support that the gateway's certificate is out of date.",
		}
	case errors.As(err, &untrusted) && untrusted.Inspector != "":
		return Trouble{
			"tls_inspected", "This network opens TLS connections (certificate issued by ‘" + untrusted.Inspector + "’), so the gateway cannot be known through it.",
			"Ask whoever runs this network not to inspect TLS to the gateway, or try another network. Your IT support knows the gateway's address.",
		}
	case errors.As(err, &untrusted):
		return Trouble{
			"untrusted", "Something else answers at the gateway's address: " + untrusted.Cause + ".",
			"A hotel or guest network may stand in between: try another network. If it persists, tell your IT support.",
		}
	case errors.As(err, &refused):
		return Trouble{"gateway", refused.Message, refused.Remedy}
	case errors.As(err, &dns):
		return Trouble{
			"dns", "The gateway's name " + dns.Name + " cannot be resolved.",
			"Check that this laptop is online. If other pages open, ask your IT support whether the name is right.",
		}
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return Trouble{
			"refused", "The gateway's machine answers, but the gateway does not.",
			"It may be restarting; a running agent tries again by itself. If it persists, tell your IT support.",
		}
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETDOWN):
		return Trouble{
			"unreachable", "There is no way to the gateway from this network.",
			"Check that this laptop is online.",
		}
	case errors.Is(err, ErrSilent):
		return Trouble{
			"silent", "The tunnel to the gateway went silent.",
			"The agent connects anew by itself. If it persists, the network may block UDP: try another one, or ask your IT support.",
		}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return Trouble{
			"timeout", "The gateway does not answer.",
			"Check that this laptop is online. If other pages open, the gateway may be down or the network may block it: tell your IT support.",
		}
	case err == nil:
		return Trouble{}
	}
	return Trouble{"error", "The connection to the gateway failed: " + err.Error() + ".", "A running agent tries again by itself."}
}
