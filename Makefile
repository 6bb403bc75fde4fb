# Every target is one or two plain commands; a newcomer needs Go, git and make.
# ARGS goes to the program a target runs: make demo ARGS=--script

GO   ?= go
ARGS ?=

# Without cgo everything builds and tests the same with and without a C
# compiler; only the race detector needs one.
export CGO_ENABLED = 0

GOFUMPT     = mvdan.cc/gofumpt@v0.12.0
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

# Packages with concurrency of their own run under the race detector.
RACE = ./agent/... ./gateway/... ./internal/... ./certs/... ./policy/...
FUZZTIME ?= 60s

.PHONY: help build axe demo test test-kill test-large e2e bench bench-revoke bench-proxy soak mutants h2spec check fmt fuzz clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' Makefile | sed 's/:.*## /\t/'

build: ## both binaries and the demo into build/
	@$(GO) build -ldflags "-s -w" -o build/ ./cmd/portvakt-gateway ./cmd/portvakt-agent
	@cd deploy && $(GO) build -ldflags "-s -w" -o ../build/portvakt-demo ./demo

demo: build ## a whole company on this machine until Ctrl-C; ARGS=--script plays the story by itself
	@build/portvakt-demo $(ARGS)

test: build ## unit, race, Rego, fuzz seed and end-to-end tests
	$(GO) test ./...
	@if CGO_ENABLED=1 $(GO) tool cgo -V >/dev/null 2>&1 && command -v "$$($(GO) env CC)" >/dev/null 2>&1; then set -x; CGO_ENABLED=1 $(GO) test -race $(RACE); else echo "no C compiler: the race detector is left out (install gcc and libc6-dev)"; fi
	cd deploy && $(GO) test -count=1 -timeout 20m ./...

e2e: build ## the end-to-end tests alone (as root they run with real peers in network namespaces)
	cd deploy && $(GO) test -count=1 -v ./e2e/... $(ARGS)

axe: ## axe-core from npm, with which the tests look at the pages people see
	cd deploy/e2e/pages && npm ci

test-kill: ## kill -9 the gateway 200 times under load: nothing the app saw lacks its record (minutes)
	cd deploy && $(GO) test -count=1 -timeout 60m -v -run '^TestKillUnderLoad$$' ./e2e -kills 200

test-large: ## 10 GiB up and down over HTTP/1.1, HTTP/2 and to an https app, in constant memory (ten minutes); ARGS="-large 1024" for less
	$(GO) test -count=1 -timeout 60m -v -run '^TestLargeTransfersTakeNoMemory$$' ./gateway/proxy -large 10240 $(ARGS)

bench: ## the tunnel against stock wireguard-go (root; Debian's iperf3, nginx, wrk); ARGS="--rounds 1 --only tcp", --quick, --json
	@$(GO) build -o build/bench/ ./cmd/portvakt-gateway ./cmd/portvakt-agent
	@$(GO) build -o build/bench/wireguard-go golang.zx2c4.com/wireguard
	@$(GO) test -c -o build/bench/tunnel.test ./gateway/tunnel
	@cd deploy && $(GO) build -o ../build/bench/bench ./bench
	@build/bench/bench $(ARGS)

bench-revoke: ## from an event to the last byte, with 1,000 sessions and 10,000 open flows of all kinds; ARGS="--rounds 1 --trials 10", --quick, --json
	@cd deploy && $(GO) build -o ../build/bench/revoke ./bench/revoke
	@build/bench/revoke $(ARGS)

bench-proxy: ## requests through the gateway's proxy against httputil.ReverseProxy, nginx and Caddy (Debian's nginx-light, caddy, wrk)
	@$(GO) test -c -o build/bench/audit.test ./gateway/audit
	@$(GO) test -c -o build/bench/notary.test ./gateway/audit/notary
	@cd deploy && $(GO) build -o ../build/bench/proxy ./bench/proxy
	@build/bench/proxy $(ARGS)

soak: ## two hours of 32 devices' tunnels in under two minutes, under the race detector (as root both modes)
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 3m -v -run '^TestSoak$$' ./gateway/tunnel -soak.hours 2

mutants: ## break each promise and see its test fail; ARGS="-only cl_te"
	cd deploy && $(GO) run ./mutants $(ARGS)

h2spec: ## HTTP/2 conformance of the gateway beside that of Go's own server
	cd deploy && $(GO) build -o ../build/h2spec github.com/summerwind/h2spec/cmd/h2spec
	$(GO) test -count=1 -tags h2spec -v -run '^TestH2Spec$$' ./gateway/proxy -args -h2spec "$(CURDIR)/build/h2spec"

check: ## formatting, vet, staticcheck, module files, cross-builds
	@out="$$($(GO) run $(GOFUMPT) -l .)"; if [ -n "$$out" ]; then echo "gofumpt would change (run make fmt):"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	cd deploy && $(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	cd deploy && $(GO) run $(STATICCHECK) ./...
	$(GO) mod tidy -diff
	cd deploy && $(GO) mod tidy -diff
	@for os in linux darwin windows; do for arch in amd64 arm64; do echo "agent for $$os/$$arch"; GOOS=$$os GOARCH=$$arch $(GO) build -o /dev/null ./cmd/portvakt-agent || exit 1; done; done
	@for arch in amd64 arm64; do echo "gateway for linux/$$arch"; GOOS=linux GOARCH=$$arch $(GO) build -o /dev/null ./cmd/portvakt-gateway || exit 1; done

fmt: ## format every Go file
	$(GO) run $(GOFUMPT) -w .

fuzz: ## each fuzz target for FUZZTIME (60s)
	@grep -rl '^func Fuzz' --include='*_test.go' . | sort | while read -r file; do for f in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$$file"); do echo "$$(dirname "$$file") $$f"; (cd "$$(dirname "$$file")" && $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) .) || exit 1; done; done

clean: ## remove what the other targets made
	rm -rf build deploy/e2e/pages/node_modules
