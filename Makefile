# The task runner. `make run` needs Python 3.11 with pip and venv, and git; everything else lands in .venv.

VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check
CONFIG ?= config/syncd.toml
ARGS   ?=
# A test waits as often as it works: three workers for two processors.
WORKERS := $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n + (n + 1) / 2)))
PYTEST := $(PY) -m pytest -n $(WORKERS) --dist worksteal

# --no-deps: a lock file names everything there is, so pip has nothing to resolve; --require-hashes checks every byte.
INSTALL := $(PIP) install -qq --no-deps --require-hashes
COMPILE := $(VENV)/bin/uv pip compile pyproject.toml --quiet --python-version 3.11 --python-platform linux \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test check lint bench bench-replenish fuzz soak docs lock

help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.run var/feeds ## Start the daemon on config/syncd.toml (CONFIG=…), with sample keys; Ctrl-C stops it
	@exec $(VENV)/bin/syncd run --config $(CONFIG)

test: $(VENV)/.dev ## Run the tests on SQLite and PostgreSQL (ARGS="-k vault" and the like)
	@$(PYTEST) $(ARGS)

check: lint ## What CI runs: lint, installed packages, tests (the wheel and the lock files among them)
	@$(PIP) check
	@$(PYTEST) $(ARGS)

lint: $(VENV)/.dev ## Style, types and the order of imports
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-logo

bench: $(VENV)/.dev ## Measure deliveries, claims and ingest against bare loops in the same run
	@$(PY) -m tests.bench $(ARGS)

bench-replenish: $(VENV)/.dev ## Try policies of what to hold on simulated demand (docs/replenish.md)
	@$(PY) -m tests.bench.replenish $(ARGS)

fuzz: $(VENV)/.dev ## Throw payloads at the reader of keys for five minutes (ARGS=-max_total_time=60)
	@install -d var/fuzz
	@$(PY) tests/fuzz/reading_target.py -max_total_time=300 -timeout=10 -artifact_prefix=var/fuzz/ $(ARGS) var/fuzz

soak: $(VENV)/.dev ## Buy from faulty suppliers with crashes and kills, new seeds for hours (ARGS="--hours 8")
	@$(PY) -m tests.world $(ARGS)

docs: $(VENV)/.dev ## Check that the documents say what the code does
	@$(PY) -m pytest -k "docs or walk or readme" $(ARGS)

lock: $(VENV)/.dev ## Lock the newest dependencies that pyproject.toml allows, by hash
	@$(COMPILE) --upgrade --group build --output-file requirements.lock
	@$(COMPILE) --upgrade --group dev --constraints requirements.lock --output-file requirements-dev.lock

# --- what the tasks stand on --------------------------------------------------------------------------------------------

$(VENV)/bin/python:
	@for candidate in python3.11 python3.12 python3.13 python3; do \
	  if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    exec $$candidate -m venv $(VENV); \
	  fi; \
	done; \
	echo 'syncd needs Python 3.11 or newer with pip and venv (Debian: apt-get install python3 python3-venv).' >&2; exit 1

# The stamps make a second start immediate. hatchling is in the lock, so that the checkout installs without fetching it.
$(VENV)/.run: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo 'Installing what syncd needs into $(VENV) …'
	@$(INSTALL) -r requirements.lock
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	@echo 'Installing the development tools into $(VENV) …'
	@$(INSTALL) -r requirements-dev.lock
	@touch $@

# Made once and never again: what the owner puts there, or takes out, stays so. Renamed into place when it is whole.
var/feeds:
	@install -d -m 700 var
	@rm -rf var/feeds.new && cp -R config/samples var/feeds.new && mv var/feeds.new $@
