package tunnel

import (
	"github.com/portvakt/portvakt/internal/hosttun"
)

func (t *Tunnel) newTUN() (stack, error) {
	return hosttun.New(hosttun.Options{
		Addresses: t.cfg.Addresses[:],
		MTU:       t.cfg.MTU,
		TCP:       func(r *hosttun.TCPRequest) { t.cfg.TCP(r) },
		Filter:    t.filter,
		Taken:     t.cfg.UDP,
		Source:    t.known.first,
		Refuse:    t.refuse,
	})
}
