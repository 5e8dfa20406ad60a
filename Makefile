# Two commands matter: `make demo` and `make test`. Both start from a bare clone and any Python from 3.11 on.
# Kept to GNU make 3.81 and POSIX shell, so that it runs on macOS as it comes. pip is asked as it is configured:
# its environment variables (PIP_INDEX_URL, PIP_FIND_LINKS, ...) and pip.conf decide where packages come from.

SHELL := /bin/sh
VENV ?= .venv
PYTHON ?=
PYTEST_ARGS ?=
# Two processes of tests, each file in one of them, in the order of tests/conftest.py: most tests keep one core busy.
WORKERS ?= 2
PYTEST := -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check
RUN_STAMP := $(VENV)/.installed-requirements
DEV_STAMP := $(VENV)/.installed-requirements-dev
ENGINES_VENV ?= .venv-engines
ENGINES_STAMP := $(ENGINES_VENV)/.installed-requirements

.PHONY: help demo install install-dev chromium weights test test-fast test-engines screenshots lint format clean distclean
.DEFAULT_GOAL := help

help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(RUN_STAMP) ## Install what is missing, fetch the real model where it can be had, and serve the app
	@$(PY) -m scripts.weights --optional
	$(PY) app.py

install: $(RUN_STAMP) ## Create .venv with what the app needs

install-dev: $(DEV_STAMP) ## Create .venv with what the tests and checks need as well

chromium: $(DEV_STAMP) ## Find a Chromium for the tests, or install one
	@$(PY) -m tests.support.browser --install

weights: $(RUN_STAMP) ## Fetch the real model of the tests marked real (93 MB), and convert it once
	@$(PY) -m scripts.weights

test: $(DEV_STAMP) chromium ## Install what is missing and run every test (PYTEST_ARGS="-k name")
	@$(PY) -m scripts.weights --optional
	$(PY) $(PYTEST) $(PYTEST_ARGS)

test-fast: $(DEV_STAMP) ## Run the tests that are quick and need neither a browser nor the real model
	$(PY) $(PYTEST) -m "not slow and not browser and not real" $(PYTEST_ARGS)

test-engines: $(ENGINES_STAMP) ## Run the tests against vLLM, in an environment of its own (Linux, 4 GB)
	@$(ENGINES_VENV)/bin/python -m scripts.weights --optional
	$(ENGINES_VENV)/bin/python -m pytest -m engines tests/inference/vllm $(PYTEST_ARGS)

screenshots: $(DEV_STAMP) chromium ## Renew the pictures in docs/images
	PERSONA_PICTURES=docs/images $(PY) -m pytest -q tests/app/test_looks.py tests/report/test_analyse.py -k "picture or one_trait"
	mv docs/images/persona-card.png persona_core/app/static/

lint: $(DEV_STAMP) ## Check style, format, types, layers and dependencies
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-cache
	$(PY) -m deptry persona_core
	$(PY) -m deptry benchmarks demo_world real_model scripts tests --config .ci/deptry.toml

format: $(DEV_STAMP) ## Format the code and fix what ruff can fix
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## Remove caches and build output
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache test-results
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## Remove the environments as well
	for folder in $(VENV) $(ENGINES_VENV); do if [ -e $$folder/pyvenv.cfg ]; then rm -rf $$folder; fi; done

# The stamps are newer than what they stand for once pip has succeeded. The second file includes the first. The project
# itself is installed editable: it brings the command `persona`.
$(RUN_STAMP): requirements.txt pyproject.toml | $(PY)
	$(PIP) -r requirements.txt
	$(PIP) --no-deps --editable .
	@touch $@

$(DEV_STAMP): requirements-dev.txt requirements.txt pyproject.toml | $(PY)
	$(PIP) -r requirements-dev.txt
	$(PIP) --no-deps --editable .
	@touch $(RUN_STAMP) $@

# vLLM pins much of what the app pins, to other versions. It asks for three packages for pictures and sound that this
# project never uses, and that fail to import beside some builds of torch.
$(ENGINES_STAMP): requirements-engines.txt pyproject.toml | $(PY)
	[ -e $(ENGINES_VENV)/pyvenv.cfg ] || $(PY) -m venv $(ENGINES_VENV)
	$(ENGINES_VENV)/bin/python -m pip install --disable-pip-version-check --editable . -r requirements-engines.txt
	$(ENGINES_VENV)/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	@touch $@

# A usable interpreter is new enough and can make environments (Debian ships Python without ensurepip). The default
# python3 goes first. 3.14 is the newest version for which every pinned package has a wheel; a later one is only
# taken when nothing else is there. An environment whose interpreter has gone is emptied and recreated.
$(PY):
	@found=; clear=; \
	for newest in 14 99; do \
	  for candidate in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11 python3.14 python); do \
	    if "$$candidate" -c "import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $$newest))" \
	        >/dev/null 2>&1; then found=$$candidate; break 2; fi; \
	  done; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "No usable $(if $(PYTHON),interpreter at PYTHON=$(PYTHON),Python) was found: it must be 3.11 or newer and have the" >&2; \
	  echo "modules venv and ensurepip. Install one (Debian, Ubuntu: apt-get install python3 python3-venv;" >&2; \
	  echo "macOS: brew install python@3.13) or name one: make demo PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi; \
	echo "Creating $(VENV) with $$("$$found" -c 'import sys; print(sys.executable, sys.version.split()[0])')"; \
	if [ -e $(VENV)/pyvenv.cfg ]; then clear=--clear; fi; \
	"$$found" -m venv $$clear $(VENV)
