# Everything one does with this tree. `make help` lists it. Needs python >= 3.11 with venv, make and git.
#
# Two stamps keep installs lazy: .venv/core for the demo, .venv/all for tests, checks and benchmarks. Each is
# redone only when pyproject.toml or the lock changes. torch is installed first and by itself, so that the
# build which suits the machine is chosen once and nothing later replaces it.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock
DEMO := examples/stories
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{printf "%-18s %s\n", $$1, $$2}'

.PHONY: demo
demo: .venv/core ## the whole loop on 8 story openings, offline: written, cleaned, measured, trained, compared; 3 minutes
	@HF_HUB_OFFLINE=1 $(BIN)/leaven run $(DEMO)/plan.yaml --pairs 3

.PHONY: test
test: check ## check, then every test that is not marked slow
	@echo "tests not marked slow (make test-all runs those too); first those without torch, two at a time"
	@$(BIN)/python -m pytest -n 2 -m "not slow and not torch"
	@echo "tests that use torch, one at a time"
	@$(BIN)/python -m pytest -m "torch and not slow" || [ $$? -eq 5 ] # 5: there are none

.PHONY: test-all
test-all: check ## check, then every test
	@echo "all tests; first those without torch, two at a time"
	@$(BIN)/python -m pytest -n 2 -m "not torch"
	@echo "tests that use torch, one at a time"
	@$(BIN)/python -m pytest -m torch || [ $$? -eq 5 ] # 5: there are none

.PHONY: check
check: .venv/all ## format, lint and types
	@$(BIN)/ruff format --check --quiet --output-format concise . \
	  || { echo "check: mend it with $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet --output-format concise .
	@$(BIN)/mypy --no-error-summary leaven
	@echo "check: format, lint and types are fine"

.PHONY: bench
bench: .venv/all ## every benchmark in benchmarks/, one after the other
	@set -e; for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

.PHONY: lock
lock: ## rebuild requirements.lock from pyproject.toml (TORCH=x.y.z moves torch)
	@PYTHON="$(PYTHON)" tools/lock.sh

.PHONY: clean
clean: ## remove the environment, caches and the demo's run; answer stores stay
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist $(DEMO)/runs
	@find leaven tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/core: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Leaven needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) -V 2>&1);" \
	       "choose another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "installing leaven into .venv (once)"
	@$(PYTHON) -m venv .venv
	@$(PIP) torch
	@$(PIP) --editable '.[embed,train]'
	@touch $@

.venv/all: .venv/core
	@echo "installing all extras and the tools for development into .venv (once)"
	@$(PIP) --editable '.[dev]'
	@touch $@
