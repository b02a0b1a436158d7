# `make demo` and `make test` do all their set-up, in .venv. Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-floors lint clean

demo: .venv/demo
	$(BIN)/dino-x demo

test: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# The quick tests with the lowest version of each package that pyproject.toml allows.
test-floors: .venv-floors/ready
	OMP_NUM_THREADS=1 .venv-floors/bin/python -m pytest -n auto -m "not slow"

lint: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-floors

.venv/demo: pyproject.toml requirements-tested.txt | .venv/pip
	$(BIN)/pip install -q -c requirements-tested.txt -e .
	touch $@

.venv/dev: pyproject.toml requirements-tested.txt | .venv/pip
	$(BIN)/pip install -q -c requirements-tested.txt -e '.[dev]'
	touch $@ .venv/demo

.venv/pip:
	$(PYTHON) -m venv .venv
	touch $@

.venv-floors/ready: pyproject.toml
	$(PYTHON) -m venv .venv-floors
	.venv-floors/bin/pip install -q uv
	.venv-floors/bin/uv pip compile -q --resolution lowest-direct --python .venv-floors/bin/python \
	  pyproject.toml -o .venv-floors/floors.txt
	.venv-floors/bin/pip install -q -c .venv-floors/floors.txt -e '.[dev]'
	touch $@
