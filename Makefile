# `make help` lists what can be done here. Every target installs what it needs first.
SHELL := /bin/sh
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests wait for engines more than they compute, so one process more than cores pays.
TEST_PROCESSES ?= 3
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"
# Where caching of bytecode is switched off, each of the many commands that the tests start compiles everything anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help install demo up test bars chaos bench growth lint proto proto-check proto-accept docs lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Install the locked dependencies into .venv

$(STAMP): pyproject.toml locks/bootstrap.lock locks/dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || { echo "This Python has no venv support; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/bootstrap.lock
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes locks/dev.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP) ## Start everything in a fresh directory and replay real advertising events
	@$(RUN) mrm demo

up: $(STAMP) ## Start the engines and the server, keeping data in .mrm
	@$(RUN) mrm up

test: lint proto-check ## Everything that must pass: lint, types, layers, contract, then the tests
	@$(RUN) pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

bars: $(STAMP) ## The long forms of the tests and benchmarks behind the bars
	@$(RUN) MRM_BARS=full pytest -m "bar_a or bar_b or bar_c or bar_d or bar_e or bar_f or bar_g or bar_h"

chaos: $(STAMP) ## Twenty rounds of kill -9 under four producers
	@$(RUN) MRM_BARS=full pytest tests/test_kill.py

bench: $(STAMP) ## Measure, each figure against a floor of the same run; writes benchmarks/results.json
	@$(RUN) python -m benchmarks

growth: $(STAMP) ## How costs grow from 1 to 50 million events (some 20 minutes, 10 GB); draws benchmarks/growth.svg
	@$(RUN) python -m benchmarks growth

lint: $(STAMP) ## ruff, mypy --strict, import-linter, buf lint and format
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) lint-imports
	@$(RUN) python tools/third_party_protos.py
	@$(RUN) buf lint
	@$(RUN) buf format --diff --exit-code

proto: $(STAMP) ## Regenerate generated/ from protos/
	@$(RUN) python tools/third_party_protos.py
	@$(RUN) buf format --write
	@$(RUN) buf generate
	@$(RUN) buf build --output generated/mrm/contract.binpb

proto-check: $(STAMP) ## The contract breaks nobody, and generated/ is what protos/ says
	@$(RUN) python tools/third_party_protos.py
	@$(RUN) buf build --output .mypy_cache/contract.binpb
	@$(RUN) buf breaking .mypy_cache/contract.binpb --against protos/baseline.binpb --exclude-imports
	@$(RUN) python tools/check_generated.py

proto-accept: $(STAMP) ## Make the present contract the baseline that later ones must not break
	@$(RUN) python tools/third_party_protos.py
	@$(RUN) buf build --output protos/baseline.binpb

docs: $(STAMP) ## Render the API reference into docs/api.html from the contract's comments
	@$(RUN) python tools/make_docs.py

lock: $(STAMP) ## Resolve the dependencies anew
	@for kind in "dev --all-extras" "server --extra=server"; do set -- $$kind; \
	  $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header --python-version 3.11 \
	    --upgrade $$2 pyproject.toml --output-file locks/$$1.lock; done

clean: ## Remove what was installed and generated outside git
	@rm -rf $(VENV) third_party .mypy_cache .ruff_cache .pytest_cache .hypothesis
