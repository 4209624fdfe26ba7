# make demo   the main job on a fresh machine: train the embedded model under control, evaluate it
# make test   the tests            make check  formatting, lint, types        make fix  mend formatting
# make slow   the long tests       make bench  what the loop costs per step
# Each makes its own .venv, pinned by constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow check fix bench

demo: .venv/ready
	$(BIN)/scu demo

test: .venv/ready
	$(BIN)/python -m pytest

slow: .venv/ready
	$(BIN)/python -m pytest -m slow

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/ready
	$(BIN)/python -m bench.cost

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
