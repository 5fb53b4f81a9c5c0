# Every target sets up what it needs in .venv, from nothing but Python 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
export JAX_PLATFORMS ?= cpu
# Huge pages: a step takes a quarter less time on Linux; no effect elsewhere.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo stages serve test jobs lint parity bench clean

demo: $(VENV)/.demo
	$(BIN)/qa-jax demo --output runs/demo

# The demo, unless it has been run, then the report's third stage, DPO.
stages: $(VENV)/.demo
	$(BIN)/qa-jax demo --stages --output runs/demo

# The demo's model behind an API and a page; the demo first, unless it has been run.
serve: $(VENV)/.demo
	$(BIN)/python -m pip install -q --no-compile -e ".[serve]"
	test -f runs/demo/results.json || $(BIN)/qa-jax demo --output runs/demo
	$(BIN)/qa-jax serve --checkpoint runs/demo/model --name demo --window-seconds 3

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not parity and not jobs"

# Multi-process training jobs, killed and resumed; several minutes. QA_JAX_KILLS=20 for more kills,
# QA_JAX_PROCESSES=8 for more processes, QA_JAX_READERS=25 for more readers during saves.
jobs: $(VENV)/.dev
	$(BIN)/python -m pytest -n 3 --dist worksteal -m jobs

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site

parity: $(VENV)/.parity
	$(BIN)/python -m pytest -n 2 --dist worksteal -m parity tests/parity

bench: $(VENV)/.parity
	$(BIN)/python benchmarks/against_transformers.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/generation.py --runs 1

# Editable; reinstalled when setup.py is newer than the stamp.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Without compiling bytecode, which is a third of the installation time.
$(VENV)/.demo: setup.py | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --no-compile -e ".[demo]"
	touch $@

$(VENV)/.dev: setup.py | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e ".[dev]"
	touch $@

$(VENV)/.parity: setup.py | $(VENV)/bin/python
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -e ".[parity]"
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
