// Package idp is a Dex identity provider with a fixed list of people, kept in
// memory. It is a real one: discovery, authorization code with PKCE, rotating
// keys. Only the people are invented.
package idp

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/dexidp/dex/server"
	"github.com/dexidp/dex/server/authflow"
	"github.com/dexidp/dex/server/signer"
	"github.com/dexidp/dex/storage"
	"github.com/dexidp/dex/storage/memory"
	"golang.org/x/crypto/bcrypt"
)

// Person is someone who can log in.
type Person struct {
	Name     string
	Email    string
	Password string
	Groups   []string
}

// Config says who there is and which application may ask.
type Config struct {
	// Issuer is the provider's own URL, such as http://127.0.0.1:5556/dex. The
	// handler answers below its path.
	Issuer string
	// ClientID names the one application. Without a ClientSecret it is a
	// public client, whose redirect may be any loopback address unless
	// RedirectURIs names some.
	ClientID     string
	ClientSecret string
	RedirectURIs []string
	People       []Person
	// TokenLife is how long an ID token is valid; 0 means 10 minutes.
	TokenLife time.Duration
	// Log may be nil.
	Log *slog.Logger
}

// localConnector is the name Dex knows its own password database by.
const localConnector = "local"

// New makes the provider. What Dex starts to rotate its keys ends with ctx.
func New(ctx context.Context, cfg Config) (http.Handler, error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	life := cfg.TokenLife
	if life == 0 {
		life = 10 * time.Minute
	}
	st := memory.New(log)
	passwords := make([]storage.Password, 0, len(cfg.People))
	for _, p := range cfg.People {
		// Dex takes no cheaper hash than this.
		hash, err := bcrypt.GenerateFromPassword([]byte(p.Password), bcrypt.DefaultCost)
		if err != nil {
			return nil, fmt.Errorf("hashing the password of %s: %w", p.Email, err)
		}
		passwords = append(passwords, storage.Password{
			Email: p.Email, Hash: hash, Username: p.Name, Name: p.Name, UserID: "user-" + p.Email, Groups: p.Groups,
		})
	}
	st = storage.WithStaticPasswords(st, passwords, log)
	st = storage.WithStaticConnectors(st, []storage.Connector{{ID: localConnector, Name: "Email", Type: localConnector}})
	st = storage.WithStaticClients(st, []storage.Client{{
		ID: cfg.ClientID, Name: "Portvakt", Secret: cfg.ClientSecret, Public: cfg.ClientSecret == "", RedirectURIs: cfg.RedirectURIs,
	}})
	keys, err := (&signer.LocalConfig{KeysRotationPeriod: "6h"}).Open(ctx, st, life, time.Now, log)
	if err != nil {
		return nil, fmt.Errorf("opening the identity provider's keys: %w", err)
	}
	srv, err := server.NewServer(ctx, server.Config{
		Issuer:             cfg.Issuer,
		Storage:            st,
		Signer:             keys,
		SkipApprovalScreen: true,
		IDTokensValidFor:   life,
		PKCE:               authflow.PKCEConfig{Enforce: true, CodeChallengeMethodsSupported: []string{"S256"}},
		Web:                server.WebConfig{Issuer: "Portvakt demo"},
		Logger:             log,
	})
	if err != nil {
		return nil, fmt.Errorf("starting the identity provider: %w", err)
	}
	return srv, nil
}
