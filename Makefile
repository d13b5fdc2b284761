# `make run` and `make test` do everything from a fresh clone: a virtual environment in .venv with
# pinned packages, then the command. PYTHON picks the interpreter.
PYTHON ?= python3
BIN := .venv/bin
SCENARIO ?= scenarios/edgefd-digits.toml

# One thread a process: two busy cores with two threads each are slower than one thread each.
export OMP_NUM_THREADS ?= 1

.PHONY: run test slow lint bench clean

run: .venv/ready
	$(BIN)/fedkd run $(SCENARIO)

test: lint
	$(BIN)/python -m pytest -m "not slow"

slow: .venv/ready
	$(BIN)/python -m pytest -m slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python benchmarks/filters.py

# torch goes first and alone: asked for by another package, the newest build with all its GPU
# libraries could be taken instead of the pinned one.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[ray,huggingface,audit,metrics,mlflow,dev]"
	touch $@

clean:
	rm -rf .venv build *.egg-info
