# Everything runs from a fresh clone: each target sets up first, and setting up is quick when there is nothing to do.
# Needs python3 >= 3.11 and make. Node.js comes from the machine, or into .venv where the machine has none.

PYTHON ?= python3
WORKERS ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NPM_CI := npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
# The machine's node first, else the one in .venv.
export PATH := $(PATH):$(CURDIR)/.venv/bin

PEERS := $(wildcard tests/peers/requirements.lock tests/peers/package-lock.json)
PEER_STAMPS := $(patsubst tests/peers/requirements.lock,.venv-peers/.ready,\
	$(patsubst tests/peers/package-lock.json,tests/peers/node_modules/.ready,$(PEERS)))

.PHONY: help setup parts demo test test-go check format coverage bench lock clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## make .venv, the tools and the local chain's parts
	@$(MAKE) --no-print-directory -j2 parts
	@$(BIN)/python -c 'from x402kit.devnet.packages import installed; installed()'

parts: .venv/.ready node_modules/.ready $(PEER_STAMPS)
	@:

demo: setup ## start local chains and a priced endpoint, and pay it
	@$(BIN)/x402kit demo

test: setup ## run all tests
	$(BIN)/python -m pytest -n $(WORKERS)

# Not a part of `test`: building them takes minutes, and a gigabyte or two of Go's caches.
test-go: setup .venv-go/.ready ## run the tests beside programs in Go: btcd, lnd, aperture (needs Go 1.26)
	$(BIN)/python -m pytest tests/go/suite.py

check: setup ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	node_modules/.bin/pyright
	$(BIN)/lint-imports

format: setup ## rewrite the sources as `check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

coverage: setup ## run all tests and show the branches they missed
	$(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report=term-missing

bench: setup ## measure ourselves beside the peers
	$(BIN)/python -m benchmarks

.venv/.python: # the interpreter alone
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.ready: .venv/.python requirements-dev.lock pyproject.toml
	$(PIP) install --quiet --require-hashes -r requirements-dev.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

.venv/.node: .venv/.python requirements-node.lock
	@command -v npm >/dev/null || $(PIP) install --quiet --require-hashes -r requirements-node.lock
	@touch $@

node_modules/.ready: .venv/.node package-lock.json
	$(NPM_CI)
	@touch $@

.venv-peers/.ready: tests/peers/requirements.lock
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r $<
	@touch $@

tests/peers/node_modules/.ready: tests/peers/package-lock.json .venv/.node
	cd tests/peers && $(NPM_CI)
	@touch $@

GO ?= go
# Parts of lnd's REST service; its own releases have more of them.
GO_TAGS := chainrpc invoicesrpc routerrpc signrpc walletrpc

.venv-go/.ready: tests/go/go.mod tests/go/go.sum
	@command -v $(GO) >/dev/null || { echo "Go is needed: make test-go GO=..."; exit 1; }
	cd tests/go && CGO_ENABLED=0 GOBIN=$(CURDIR)/.venv-go/bin $(GO) install -mod=readonly -tags "$(GO_TAGS)" tool
	@touch $@

COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet

lock: ## work out the lock files anew (needs uv on the PATH)
	$(COMPILE) --upgrade pyproject.toml --extra evm --extra svm --extra lightning --extra httpx2 --extra postgres --group dev -o requirements-dev.lock
	$(COMPILE) --upgrade --group node -o requirements-node.lock
	npm update --package-lock-only --ignore-scripts
	cd x402kit/devnet/npm && npm update --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved

clean: ## remove what setup made here (not the local chain's cache)
	rm -rf .venv .venv-peers .venv-go node_modules tests/peers/node_modules
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.* htmlcov build dist
