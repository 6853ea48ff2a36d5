# vidtrain: every task a contributor needs, as one target. `make` lists them.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# The run that `make train` makes; extra overrides go to the training stage:
#   make train NAME=mine TRAIN='model=slow_r50 train.epochs=5'
NAME  ?= quickstart
TRAIN ?=

# Two workers, one thread each: what two cores can do. A test that hangs is stopped after five
# minutes. Extra options: make test ARGS='-k sampler'
WORKERS ?= 2
ARGS    ?=
PYTEST   = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --timeout 300

.DEFAULT_GOAL := help
.PHONY: help train test test-all lint types format wheel docker-lint clean

help:  ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: $(STAMP)  ## Train, evaluate and export a small model on synthetic videos (minutes on a CPU)
	$(BIN)/vidtrain train name=$(NAME) $(TRAIN)
	$(BIN)/vidtrain eval run=runs/$(NAME)
	$(BIN)/vidtrain export run=runs/$(NAME) format=onnx
	@echo "Everything is in $(CURDIR)/runs/$(NAME)"

test: $(STAMP)  ## Run the fast tests
	$(PYTEST) -m "not slow and not gpu" $(ARGS)

test-all: $(STAMP)  ## Run all tests, the slow ones and those for a GPU too
	$(PYTEST) $(ARGS)

lint: $(STAMP)  ## Check style and spelling, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(STAMP)  ## Check the type annotations
	$(BIN)/mypy

format: $(STAMP)  ## Lay out the code and repair what ruff can repair
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

wheel: $(STAMP)  ## Build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

docker-lint: $(STAMP)  ## Check the Dockerfile
	$(BIN)/hadolint Dockerfile

clean:  ## Remove the environment, caches and builds; runs/ stays
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache
	find $(wildcard conf docs scripts tests vidtrain) -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment is complete when the stamp is there, and is brought up to date when the
# dependencies change.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "vidtrain needs Python 3.11 or newer, but '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1 || true). Name another: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; \
	  exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
