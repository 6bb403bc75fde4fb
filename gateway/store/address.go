package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/netip"
	"slices"
)

// Host numbers: number n is base + n in both pools.
const (
	gatewayNumber = 1
	firstNumber   = 16 // of devices and apps; the ones before are kept for gateways
)

// pools are the two ranges of inner addresses.
type pools struct {
	v4, v6 netip.Prefix
	last   int64 // largest host number; the one above is IPv4's broadcast address
}

func newPools(v4, v6 netip.Prefix) (pools, error) {
	for _, c := range []struct {
		what     string
		p        netip.Prefix
		family   bool
		min, max int
	}{
		{"IPv4", v4, v4.Addr().Is4(), 10, 24},
		{"IPv6", v6, v6.Addr().Is6() && !v6.Addr().Is4In6(), 32, 112},
	} {
		switch {
		case !c.p.IsValid() || !c.family:
			return pools{}, fmt.Errorf("the %s pool %s is not an %s prefix", c.what, c.p, c.what)
		case c.p.Bits() < c.min || c.p.Bits() > c.max:
			return pools{}, fmt.Errorf("the %s pool %s has a wrong size: it must be between /%d and /%d", c.what, c.p, c.min, c.max)
		case c.p.Masked() != c.p:
			return pools{}, fmt.Errorf("the %s pool %s has host bits set: write %s", c.what, c.p, c.p.Masked())
		}
	}
	if 128-v6.Bits() < 32-v4.Bits() {
		return pools{}, fmt.Errorf("the IPv6 pool %s is smaller than the IPv4 pool %s: every number needs an address in both", v6, v4)
	}
	return pools{v4: v4, v6: v6, last: 1<<(32-v4.Bits()) - 2}, nil
}

// at returns the addresses of host number n.
func (p pools) at(n int64) [2]netip.Addr {
	a4 := p.v4.Addr().As4()
	binary.BigEndian.PutUint32(a4[:], binary.BigEndian.Uint32(a4[:])+uint32(n))
	a6 := p.v6.Addr().As16()
	new(big.Int).Add(new(big.Int).SetBytes(a6[:]), big.NewInt(n)).FillBytes(a6[:])
	return [2]netip.Addr{netip.AddrFrom4(a4), netip.AddrFrom16(a6)}
}

// AppAddresses returns the inner addresses (IPv4, IPv6) of the named apps and
// gives those that have none the next free ones. An app keeps its addresses by
// its name for as long as the store lives, also while it is not configured.
func (s *Store) AppAddresses(ctx context.Context, names []string) (map[string][2]netip.Addr, error) {
	have, err := s.appNumbers(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the addresses of apps: %w", err)
	}
	missing := map[string]bool{}
	for _, name := range names {
		if _, ok := have[name]; !ok {
			missing[name] = true
		}
	}
	if len(missing) > 0 {
		err := s.write(ctx, func(tx *sql.Tx) error {
			// Sorted: a first start gives the same addresses on every machine.
			for _, name := range slices.Sorted(maps.Keys(missing)) {
				n, err := s.number(ctx, tx, "app", name)
				if err != nil {
					return fmt.Errorf("app %q: %w", name, err)
				}
				have[name] = n
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("giving apps their addresses: %w", err)
		}
	}
	out := make(map[string][2]netip.Addr, len(names))
	for _, name := range names {
		out[name] = s.pools.at(have[name])
	}
	return out, nil
}

func (s *Store) appNumbers(ctx context.Context) (map[string]int64, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT owner, number FROM addresses WHERE owner_kind = 'app'`)
	if err != nil {
		return nil, err
	}
	have := map[string]int64{}
	err = each(rows, func() error {
		var name string
		var n int64
		if err := rows.Scan(&name, &n); err != nil {
			return err
		}
		have[name] = n
		return nil
	})
	return have, err
}

// number returns the host number of an owner, the next free one if it has
// none. Numbers only grow: rows of addresses are never deleted.
func (s *Store) number(ctx context.Context, tx *sql.Tx, kind, owner string) (int64, error) {
	var n int64
	err := tx.QueryRowContext(ctx, `SELECT number FROM addresses WHERE owner_kind = ? AND owner = ?`, kind, owner).Scan(&n)
	if !errors.Is(err, sql.ErrNoRows) {
		return n, err
	}
	var top sql.NullInt64
	if err := tx.QueryRowContext(ctx, `SELECT MAX(number) FROM addresses`).Scan(&top); err != nil {
		return 0, err
	}
	n = max(firstNumber, top.Int64+1)
	if n > s.pools.last {
		return 0, fmt.Errorf("the address pool %s is used up (%d addresses were given out): a larger pool needs a new store",
			s.pools.v4, s.pools.last-firstNumber+1)
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO addresses (number, owner_kind, owner) VALUES (?, ?, ?)`, n, kind, owner)
	return n, err
}

// each calls f for every row and closes rows.
func each(rows *sql.Rows, f func() error) error {
	for rows.Next() {
		if err := f(); err != nil {
			return errors.Join(err, rows.Close())
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}
