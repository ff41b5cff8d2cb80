# Everything a fresh machine needs: Python 3.11 or newer and make. `make demo` and `make test` do their own set-up.

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
PYTEST_FLAGS ?= -n auto
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# One thread for each process: the networks are small, and processes, not threads, use the other cores.
export OMP_NUM_THREADS ?= 1

.PHONY: help install demo test test-browser test-thousand test-integrations test-serving test-engines \
	lint format wheel-check clean

help:
	@echo "make demo           train on the quickstart card and compare with the baselines (under 10 minutes, 2 cores)"
	@echo "make test           the test suite"
	@echo "make test-browser   TensorBoard in headless Chromium"
	@echo "make test-thousand  a thousand random scenarios, full training studies"
	@echo "make test-integrations  plugins against the packages they plug into (an environment of its own, 3 GB)"
	@echo "make test-serving   the simulator against router and emulated engines, by the clock (half an hour; a quiet machine)"
	@echo "make test-engines   the router before vLLM engines on CPUs (an environment of its own, 2.6 GB; Linux, x86-64)"
	@echo "make lint           ruff and mypy"
	@echo "make wheel-check    build the wheel and try it in an empty environment outside the checkout"
	@echo "make clean          remove what the above left behind, the virtual environment too"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python experiments/quickstart.py

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-browser: $(INSTALLED)
	$(BIN)/python -m pytest -m browser

test-thousand: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m thousand --hypothesis-profile=default --timeout 3600

INTEGRATIONS ?= .venv-integrations
test-integrations:
	$(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/python -m pip install $(PIP_FLAGS) --disable-pip-version-check -c constraints.txt -e '.[dev]' \
		'ray[serve]==2.60.0' xpyd-proxy==1.8.0 'kubernetes>=32.0.1,<33' pandas scikit-learn
	$(INTEGRATIONS)/bin/python -m pip install $(PIP_FLAGS) --disable-pip-version-check --no-deps \
		py-inference-scheduler==0.1.0 ai-dynamo==1.6.1 ai-dynamo-runtime==1.6.1
	$(INTEGRATIONS)/bin/python -m pytest tests/integrations -rs

test-serving: $(INSTALLED)
	$(BIN)/python experiments/sim_to_serving.py --check

ENGINES ?= .venv-engines
test-engines: $(INSTALLED) $(ENGINES)/.installed
	ENGINES=$(ENGINES) $(BIN)/python -m pytest -m engines tests/engines -rs

$(ENGINES)/.installed: tests/engines/requirements.txt
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip install $(PIP_FLAGS) --disable-pip-version-check --no-deps -r $<
	@touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel-check: $(INSTALLED)
	.ci/wheel-check $(BIN)/python

clean:
	rm -rf $(VENV) $(INTEGRATIONS) $(ENGINES) build dist runs tb out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
