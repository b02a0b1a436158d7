# `make demo` and `make test` do all their set-up, in .venv. Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs clean

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

# The pages of docs/ as a site: everything is on this machine, the search too.
docs: .venv/docs
	$(BIN)/zensical build --clean --strict
	@echo "site/ is built; $(BIN)/zensical serve shows it at http://localhost:8000"

clean:
	rm -rf .venv site

.venv/demo: pyproject.toml requirements-tested.txt | .venv/pip
	$(BIN)/pip install -q -c requirements-tested.txt -e .
	touch $@

.venv/dev: pyproject.toml requirements-tested.txt | .venv/pip
	$(BIN)/pip install -q -c requirements-tested.txt -e '.[dev]'
	touch $@ .venv/demo

.venv/docs: pyproject.toml | .venv/pip
	$(BIN)/pip install -q 'zensical>=0.0.70'
	touch $@

.venv/pip:
	$(PYTHON) -m venv .venv
	touch $@
