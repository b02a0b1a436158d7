# `make demo` and `make test` do all their set-up, in .venv. Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/demo
	$(BIN)/dino-x demo

test: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv

.venv/demo: pyproject.toml requirements-tested.txt | .venv/pip
	$(BIN)/pip install -q -c requirements-tested.txt -e .
	touch $@

.venv/dev: pyproject.toml requirements-tested.txt | .venv/pip
	$(BIN)/pip install -q -c requirements-tested.txt -e '.[dev]'
	touch $@ .venv/demo

.venv/pip:
	$(PYTHON) -m venv .venv
	touch $@
