# Everything needs Python 3.11 and make, nothing else; `make help` says what there is.

PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/made
PYTEST := $(BIN)/python -m pytest

# An empty HOME is no place for caches; then pip keeps none and the rest stays in .venv.
ifeq ($(strip $(HOME)),)
export HOME := $(CURDIR)/.venv
export PIP_NO_CACHE_DIR := 1
endif
unexport PYTHONPATH PYTHONHOME PIP_USER

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast check lint model mutations chaos bench-spine clean
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## about a minute: real mail leaves, is paced, parked and explained while workers are killed
	@$(BIN)/outtray demo

test: $(STAMP) ## every test: with real PostgreSQL and Valkey, then with real processes under faults
	@$(PYTEST) -q -n 2 --dist loadgroup tests/unit tests/contracts tests/model tests/integration
	@$(PYTEST) -q tests/mail tests/acceptance

# What most changes break first: every unit, the contract over all providers, and the protocol's own pages.
FAST := $(addprefix tests/integration/test_,$(addsuffix .py,\
	claim_and_gate registrar turn_outcomes turn_deaths turn_limits dispatching drafts engine client_enqueue reconcile))

test-fast: $(STAMP) ## the tests that most changes break first, under 90 s
	@$(PYTEST) -q -n 2 --dist loadgroup -m "not slow" tests/unit tests/contracts/test_provider_contract.py $(FAST)

check: lint test ## formatter, linter, types, every test

lint: $(STAMP) ## formatter, linter, types
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

model: $(STAMP) ## the protocol's model, deeper (FAULTS=1 and ACTS=0 beyond the tests', STATES at most)
	@PYTHONPATH=tests $(BIN)/python -m model --faults $(or $(FAULTS),1) --acts $(or $(ACTS),0) --states $(or $(STATES),2000000)

mutations: $(STAMP) ## take out one safeguard after another: each must turn a named test red (ONLY=part of a name)
	@PYTHONPATH=tests $(BIN)/python -m mutation --only "$(ONLY)"

chaos: $(STAMP) ## faults at every step of every route (SECONDS, SEED; CELL='gated/kill/gmail draft'; TROUBLE; REAL=1)
	@PYTHONPATH=tests $(BIN)/python -m acceptance.faults.chaos --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED)) \
	  $(if $(CELL),--cell "$(CELL)") $(if $(TROUBLE),--trouble "$(TROUBLE)") $(if $(REAL),--real)

bench-spine: $(STAMP) ## throughput, fairness, memory, within 25 minutes (QUICK=1: within 3)
	@$(BIN)/python -m tests.bench.spine

clean: ## remove the virtual environment and all caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed ($(PYTHON) was not found; PYTHON=/path/to/it names another)"; exit 1; }
	@echo "making .venv: a minute or two, once"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt -e '.[dev]'
	@touch $@
