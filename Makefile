# Everything starts with `make install`; it needs Python 3.11 or newer with venv, make, and a C library.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OURS := everycent workflows activities workers starters
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml

.PHONY: install test demo import-check interleavings histories soak bench requirements lint format lock clean simulate guards mutants model sweep sweep-tcc sweep-choreographed bench-protocols

install: $(VENV)/.installed

$(VENV)/.installed: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: $(PYTHON) is missing or older than 3.11; install it, or: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "error: $(PYTHON) has no venv; install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked packages into $(VENV) …"
	@if test -x $(BIN)/uv; then \
		$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements-dev.lock; \
	else \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock; \
	fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q $(OURS)
	@touch $@

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

demo: install
	@$(BIN)/everycent demo

import-check: install
	$(BIN)/python tests/faults/import_check.py $(if $(CSV),--csv $(CSV))

interleavings: install
	$(BIN)/python -m everycent.proof.interleavings_run $(ARGS)

histories: install
	$(BIN)/python -m everycent.proof.histories tests/replay/histories

soak: install
	$(BIN)/python -m everycent.proof.soak --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

simulate: install
	@$(BIN)/python -m everycent.proof.simulation --seed $(or $(SEED),1) --days $(or $(DAYS),30)

model: install
	MODEL_EXAMPLES=$(or $(EXAMPLES),50) MODEL_SEED=$(or $(SEED),3) \
		$(BIN)/python -m pytest -q tests/properties/test_shop_model.py

sweep: install
	$(BIN)/everycent sweep checkout --document docs/sweep.md $(if $(SAMPLE),--sample $(SAMPLE))

sweep-tcc sweep-choreographed: sweep-%: install
	$(BIN)/everycent sweep checkout-$* --document docs/sweep-$*.md $(if $(SAMPLE),--sample $(SAMPLE))

bench-protocols: install
	$(BIN)/python -m benchmarks.protocols

bench: install
	$(BIN)/python -m benchmarks

guards: install
	$(BIN)/python -m tests.guards.run $(ONLY)

mutants: install
	$(BIN)/python -m tests.mutants

requirements: install
	@$(BIN)/python tests/house/requirements_table.py

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock:
	$(COMPILE) --all-extras --group dev -o requirements-dev.lock
	$(COMPILE) --extra embedded -o requirements-embedded.lock
	$(COMPILE) -o requirements.lock
	$(COMPILE:pyproject.toml=) --group build -o requirements-build.lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find $(OURS) tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
