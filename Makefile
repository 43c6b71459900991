# Every target works from a fresh clone and needs no activated environment.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.DEFAULT_GOAL := help
.PHONY: help setup check test lowest demo golden calibrate bench docs output images notebook reproductions wheel clean lint style types layers fast

help:    ## show this list
	@sed -n 's/^\([a-z]*\): *[^#]*## \(.*\)/\1	\2/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(STAMP)    ## create .venv and install moesim with its tools (again where pyproject.toml changed)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "moesim needs Python 3.11 or later, and \
	$(PYTHON) is " + sys.version.split()[0] + "; run: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

check: setup    ## linters, types, layers and the fast tests, side by side
	@$(MAKE) --no-print-directory -k -j2 $(SYNC) lint fast

test: setup    ## all tests
	$(BIN)/python -m pytest

lowest: setup    ## the fast tests with the lowest versions that pyproject.toml allows, in .venv-lowest
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest --resolution lowest-direct --editable '.[test]'
	.venv-lowest/bin/python -m pytest -m "not slow" -W ignore::DeprecationWarning

demo: setup    ## compare placements on an 8-GPU node; report in out/demo
	$(BIN)/moesim compare examples/first --out out/demo

golden: setup    ## write the golden results anew and show what changed
	$(BIN)/python -m tests.golden.rewrite

calibrate: setup    ## fit the shipped cards anew on public tables (TABLES=DIR, or pip install '.[tables]')
	$(BIN)/python -m hwmodels.calibration.shipped $(TABLES)
	$(BIN)/python -m hwmodels.calibration.ship_links $(TABLES)
	$(BIN)/python -m hwmodels.calibration.ship_measured

bench: setup    ## measure the speed goals; adds a line to benchmarks/history.jsonl and draws docs/images/speed.png
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks --plot

docs: setup    ## check the documents against the code; build them, and the scenario schema, into out/docs
	$(BIN)/python -m pytest tests/unit/test_docs.py
	$(BIN)/python -m sphinx -W --keep-going -E -q -b html docs out/docs
	$(BIN)/moesim schema --out out/docs/scenario.schema.json

output: setup    ## run the commands of tutorial and guides, and write what they print into the pages
	$(BIN)/python -m docs.executed

images: setup    ## draw docs/images/schedule-*.png and the policies of the shipped trace anew
	$(BIN)/python -m docs.timelines
	$(BIN)/python -m docs.policies

notebook: setup    ## run docs/guides/notebook.ipynb anew and store what it shows (pip install '.[notebook]')
	$(BIN)/python -m docs.notebook

reproductions: setup    ## reproduce all shipped papers; writes docs/background/reproductions.md anew
	$(BIN)/python -m docs.reproduced

wheel: setup    ## build dist/moesim-*.whl
	rm -rf build dist
	$(BIN)/python -m build --wheel

clean:    ## remove what was built, and the caches; keeps .venv and out
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

lint: style layers types

style: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports --no-logo

fast: setup
	$(BIN)/python -m pytest -m "not slow"
