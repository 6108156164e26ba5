# `make demo` and `make test` do everything on a machine that has python3 (3.11 or newer) with venv and pip.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.poise-installed
WORKERS ?= 2
SEED ?= 0
# Nothing here downloads from the Hub. Workers share the cores, so each stays on one thread.
export HF_HUB_OFFLINE := 1
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo test test-slow mutants lint docs docs-figures format clean

help:
	@echo "make install    make $(VENV) with everything in it, which the others do too"
	@echo "make demo       fine-tune two tiny models on drawn scenes, compare them, publish one (about 7 minutes)"
	@echo "make test       every test but the slow ones (at most 10 minutes on 2 cores)"
	@echo "make test-slow  the tests marked slow"
	@echo "make mutants    change 200 lines, one at a time, and count how many changes the tests notice (within an hour)"
	@echo "make lint       ruff check, ruff format --check, mypy over the public API"
	@echo "make docs       build the documentation site, strictly, into build/site"
	@echo "make docs-figures  print figures of the documents anew and compare them"
	@echo "make format     let ruff rewrite what it can"
	@echo "make clean      remove what these commands made, but not $(VENV)"

install: $(STAMP)

# torch goes first and alone: it is by far the largest, and a failure of it is then easy to read.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch pip setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,lint,docs]"
# Its registry is what the plugin is tested against; what it depends on (torchvision, wandb, ...) would change the rest.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps lmms_eval
	touch $@

demo: $(STAMP)
	$(BIN)/poise demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow -n $(WORKERS) --dist loadfile

mutants: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[mutants]"
	$(BIN)/python tests/mutants.py --seed $(SEED) --workers $(WORKERS)

docs-figures: $(STAMP)
	$(BIN)/python -m pytest tests/packaging/test_document_figures.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/packaging/typing_tree.py build/typing
	$(BIN)/mypy

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist outputs *.egg-info .pytest_cache .ruff_cache .mypy_cache
