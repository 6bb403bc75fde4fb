package identity

import "context"

// SetBound replaces how long a login waits to learn whether the provider
// answers.
func (p *Provider) SetBound(f func(context.Context) (context.Context, context.CancelFunc)) {
	p.bound = f
}
