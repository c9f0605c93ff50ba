# make setup | quickstart | test | test-full | test-beam | test-mteb | docs | chaos | soak | fuzz | bench | bench-check | lint | clean
#
# PYTHON picks the interpreter: python3.11 if it runs (a command that exists may still be a
# version manager's empty shim), else python3.12, else python3. Another Python version gets an environment of its
# own: `make test PYTHON=python3.12` works in .venv-3.12 where the default would be 3.11.

version = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

DEFAULT := $(shell for p in python3.11 python3.12 python3; do $$p --version >/dev/null 2>&1 && echo $$p && break; done)
PYTHON ?= $(DEFAULT)
VERSION := $(call version,$(PYTHON))
VENV ?= .venv$(addprefix -,$(filter-out $(call version,$(DEFAULT)),$(VERSION)))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

ifeq ($(VERSION),)
$(error PYTHON = '$(PYTHON)' does not run; give one that does, such as PYTHON=/usr/bin/python3.12)
endif

# The tests allocate as train.py does.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: setup quickstart test test-full test-beam test-mteb docs chaos soak fuzz bench bench-check lint clean
.DELETE_ON_ERROR:

setup: $(VENV)/.installed-quickstart

# An activated environment, so that the commands are those of the README to the letter.
quickstart: export PATH := $(abspath $(BIN)):$(PATH)
quickstart: setup
	python train.py --config=configs/tinybert_general.py --workdir=runs/general
	python train.py --config=configs/tinybert_task.py    --workdir=runs/task --config.init_from=runs/general
	python eval.py  --workdir=runs/task

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# UNTIL, a second as `date +%s` counts them: no test begins after it.
UNTIL ?= inf
test-full: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder \
	  --durations=20 -rs --no-fold-skipped --until=$(UNTIL)

# Apache Beam in an environment of its own: its pins and jax's do not go together.
test-beam: $(VENV)/.installed-test $(VENV)-beam/.installed
	BEAM_PYTHON=$(abspath $(VENV))-beam/bin/python $(BIN)/python -m pytest -m slow tests/data/test_beam.py

# What MTEB and sentence-transformers make of models.
test-mteb: $(VENV)/.installed-test
	$(PIP) install --editable ".[mteb]"
	$(BIN)/python -m pytest tests/test_mteb.py tests/test_export.py -k "mteb or sentence_transformers"

# The site, from docs/, docstrings and argument parsers, without network, into site/. Any warning ends
# it; the theme's advertisement of its successor is none of ours.
docs: export JAX_PLATFORMS := cpu
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/.installed-test
	$(BIN)/mkdocs build --strict --clean

# Real faults, and a table of what became of them.
chaos: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/chaos -m "chaos or not chaos" -n 2 --dist worksteal --chaos-json=chaos.json

# A long run that is struck SOAK times.
SOAK ?= 200
soak: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/chaos/test_soak.py -m chaos --soak=$(SOAK) --chaos-json=soak.json

# Strangers' files, spoilt at random, for SECONDS each of the kinds.
SECONDS ?= 60
fuzz: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/fuzz -m fuzz -rP -q --fuzz-seconds=$(SECONDS)

# The same work by jaxbert and by PyTorch, in turns, on an idle machine; GLUE is a folder of its files.
# bench adds a row for each pair to the ledger, bench-check fails below the floors.
GLUE ?=
bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/against_torch.py --glue=$(GLUE) --ledger=benchmarks/RESULTS.md

bench-check: $(VENV)/.installed-test
	$(BIN)/python benchmarks/against_torch.py --glue=$(GLUE) --check

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

# Of the quickstart's packages only the files are read: without what they depend on (torch and the
# CUDA libraries by way of sentence-transformers) the environment is 5 GB smaller.
$(VENV)/.installed-quickstart: setup.cfg pyproject.toml jaxbert/__init__.py | $(BIN)/python
	$(PIP) install --editable .
	$(PIP) install --no-deps $$($(BIN)/python -c 'import configparser as c; p = c.RawConfigParser(); \
	  p.read("setup.cfg"); print(p["options.extras_require"]["quickstart"])')
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed-quickstart
	$(PIP) install --editable ".[test,docs]"
	@touch $@

$(VENV)-beam/.installed: setup.cfg | $(BIN)/python
	$(PYTHON) -m venv $(VENV)-beam
	$(VENV)-beam/bin/python -m pip install --quiet --disable-pip-version-check \
	  $$($(BIN)/python -c 'import configparser as c; p = c.RawConfigParser(); \
	  p.read("setup.cfg"); print(p["options.extras_require"]["beam"].replace(" ", ""))') \
	  array_record tokenizers sentencepiece numpy pyarrow
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: $(PYTHON) is Python $(VERSION); jaxbert needs 3.11 or newer, give it with PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "make: $(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python$(VERSION)-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
