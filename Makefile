# make quickstart   installs into .venv and trains experiments/quickstart.py into runs/quickstart
# make test-fast    the tests of what needs no training: configuration, data, records, small numbers
# make test         installs what the tests need and runs them
# make test-all     the same, with the slow ones
# make lint         ruff and basedpyright, as pyproject.toml configures them
# make lint-types   basedpyright alone
# make docs         builds the documentation into site/; a warning is an error
# make wheel        builds dist/llm_jax-VERSION-py3-none-any.whl
# Each installs only when pyproject.toml or constraints.txt changed. PYTHON chooses the interpreter: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
DEPENDENCIES = setup.py pyproject.toml $(CONSTRAINTS)

.PHONY: quickstart test-fast test test-all lint lint-types docs wheel clean

quickstart: $(VENV)/.core
	$(VENV)/bin/python -m launch.train --config=experiments/quickstart.py --workdir=runs/quickstart

FAST = tests/config tests/data tests/optim tests/tracking tests/report tests/test_floors.py tests/test_words.py tests/test_how_to.py

test-fast: $(VENV)/.test
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal $(FAST)

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

test-all: $(VENV)/.test
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -m ''

lint: lint-types
	$(VENV)/bin/python -m ruff check .

# The types of what is imported come from the packages that the tests need.
lint-types: $(VENV)/.lint $(VENV)/.test
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

wheel: $(VENV)/.python
	$(VENV)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info build dist site

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: PYTHON=$(PYTHON) is missing or too old: install Python 3.11 or newer, or name it: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: $(DEPENDENCIES) | $(VENV)/.python
	@echo 'installing llm_jax into $(VENV) (minutes, the first time)'
	$(INSTALL) -e .
	@touch $@

# torch comes first and alone: resolved together with what depends on it, pip may choose the build with gigabytes of CUDA.
$(VENV)/.test: $(DEPENDENCIES) | $(VENV)/.python
	@echo 'installing llm_jax and what its tests need into $(VENV) (minutes, the first time)'
	$(INSTALL) torch==2.13.0
	$(INSTALL) -e '.[test]'
	@touch $(VENV)/.core $@

$(VENV)/.lint: $(DEPENDENCIES) | $(VENV)/.python
	@echo 'installing what checks the code into $(VENV)'
	$(INSTALL) -e '.[lint]'
	@touch $(VENV)/.core $@

$(VENV)/.docs: $(DEPENDENCIES) | $(VENV)/.python
	@echo 'installing what builds the documentation into $(VENV)'
	$(INSTALL) -e '.[docs]'
	@touch $(VENV)/.core $@
