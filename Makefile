# `make demo` and `make test` do all their set-up, in .venv. Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-floors lint docs clean

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

# The pages of docs/ as a site: everything is on this machine, the search too.
docs: .venv/docs
	$(BIN)/zensical build --clean --strict
	@echo "site/ is built; $(BIN)/zensical serve shows it at http://localhost:8000"

clean:
	rm -rf .venv .venv-floors site

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
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here: install Python 3.11 or\
	 newer, or name yours, as in: make PYTHON=python3.12 demo"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is\
	 $$($(PYTHON) -V 2>&1), and Python 3.11 or newer is needed: install one and name it, as in:\
	 make PYTHON=python3.12 demo"; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual\
	 environments: install its package venv, as in: sudo apt install python3-venv"; exit 2; }
	$(PYTHON) -m venv .venv
	touch $@

.venv-floors/ready: pyproject.toml
	$(PYTHON) -m venv .venv-floors
	.venv-floors/bin/pip install -q uv
	.venv-floors/bin/uv pip compile -q --resolution lowest-direct --python .venv-floors/bin/python \
	  pyproject.toml -o .venv-floors/floors.txt
	.venv-floors/bin/pip install -q -c .venv-floors/floors.txt -e '.[dev]'
	touch $@
