# Every target sets up what it needs in .venv, from nothing but Python 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
export JAX_PLATFORMS ?= cpu
# Large pages for the buffers of each step: a quarter less time on Linux, nothing elsewhere.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo stages test jobs lint parity bench clean

demo: $(VENV)/.demo
	$(BIN)/qa-jax demo --output runs/demo

# The demo, where it has not been run, and then the report's third stage: preferences.
stages: $(VENV)/.demo
	$(BIN)/qa-jax demo --stages --output runs/demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not parity and not jobs"

# Several minutes: trainings of several processes, killed and resumed. QA_JAX_KILLS=20 for more kills.
jobs: $(VENV)/.dev
	$(BIN)/python -m pytest -m jobs

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

parity: $(VENV)/.parity
	$(BIN)/python -m pytest -n 2 --dist worksteal -m parity

bench: $(VENV)/.parity
	$(BIN)/python benchmarks/against_transformers.py
	$(BIN)/python benchmarks/training_step.py

# Editable, so that a change is seen at once; the stamp is older than setup.py when that changes.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Bytecode is compiled when it is needed: a third of the time of installing.
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
