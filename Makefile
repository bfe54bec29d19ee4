# make demo    the main job on the embedded data set        make test       all checks and tests
# make bench   speed and memory, as ratios                  make test-slow  the tests that take long
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow lint bench install clean
.DELETE_ON_ERROR:

install: $(INSTALLED)

# Everything in one pip command, so that one resolution fits all; redone only when pyproject.toml changes.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[train,dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/softjaccard demo

lint: $(INSTALLED)
	$(BIN)/ruff format --check src tests benchmarks experiments
	$(BIN)/ruff check src tests benchmarks experiments
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -q --durations=10 -n auto --dist loadfile

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -q --durations=10 -m slow

# With libraries that are there for the comparison only.
$(VENV)/.bench: $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[train,dev,bench]"
	touch $@

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
