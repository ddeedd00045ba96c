# `make help` explains the targets.
PYTHON ?= python3
CONFIG ?= configs/experiment/digits_cnn.yaml
ARGS ?=
VENV := .venv
READY := $(VENV)/ready
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help install train test test-long check lock clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(READY)  ## make .venv from requirements.lock, once

$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'error: $(PYTHON) is older than 3.11 -> make PYTHON=/path/to/python3.11 ...' >&2; exit 2; }
	@echo 'Installing into $(VENV), once: about 6 GB (PyTorch with CUDA), some minutes.'
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

train: $(READY)  ## train CONFIG=configs/experiment/NAME.yaml (digits_cnn by default), with ARGS="--key value ..."
	@$(RUN) -m src.train --config $(CONFIG) $(ARGS)

test: $(READY)  ## run the tests, but for the long ones
	@$(RUN) -m pytest -n 2 -m "not long" $(ARGS)

test-long: $(READY)  ## run the long tests: hundreds of kills, every step of a run
	@$(RUN) -m pytest -n 2 -m long $(ARGS)

check: $(READY)  ## ruff and mypy
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check . && $(RUN) -m mypy

lock:  ## renew requirements.lock from pyproject.toml (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --upgrade --extra dev --no-emit-index-url \
	  --no-emit-find-links --custom-compile-command "make lock" pyproject.toml -o requirements.lock

clean:  ## delete the environment and the caches, not the runs
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .mypy_cache
