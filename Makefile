# `make help` explains the targets.
PYTHON ?= python3
CONFIG ?= configs/experiment/digits_cnn.yaml
ARGS ?=
SEEDS ?= 0 1 2
GROUP ?= logs/$(basename $(notdir $(CONFIG)))
RUNS ?=
NAME ?=
KIND ?=
VENV := .venv
READY := $(VENV)/ready
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help install train seeds view runs compare test test-long check schema rename remove lock clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo 'Example: make train CONFIG=configs/experiment/digits_cnn.yaml ARGS="--trainer.max_epochs 20"'

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

seeds: $(READY)  ## train CONFIG with each of SEEDS="0 1 2", in GROUP=logs/FOLDER/seed-N: mean and spread
	@for s in $(SEEDS); do \
	  $(RUN) -m src.train --config $(CONFIG) $(ARGS) --seed_everything $$s --run_dir $(GROUP)/seed-$$s || exit; \
	done
	@$(RUN) -m src.runs $(SEEDS:%=$(GROUP)/seed-%)

# The viewer shows the names of folders, and takes those of the form run-TIME-NAME that hold a run-NAME.wandb.
view: $(READY)  ## look at the runs in the terminal with W&B's viewer, also while they train (h for help, q to quit)
	@rm -rf .cache/view && mkdir -p .cache/view
	@find logs -type d -name 'offline-run-*' 2>/dev/null | while read -r record; do \
	  run=$${record#logs/}; time=$$(basename "$$record" | cut -d- -f3); \
	  name=$$(echo "$${run%/wandb/*}" | tr / . | sed -E 's/\.20[0-9]{2}-[0-9_-]+$$//'); \
	  folder=".cache/view/run-$$time-$$name"; mkdir -p "$$folder"; \
	  ln -sfn "$(CURDIR)/$$record/files" "$$folder/files"; \
	  ln -sf "$(CURDIR)/$$record"/run-*.wandb "$$folder/run-$$name.wandb"; \
	done
	@[ -n "$$(ls .cache/view)" ] || { echo 'error: no run is in logs/ yet -> make train' >&2; exit 2; }
	@$(VENV)/bin/wandb leet .cache/view

runs: $(READY)  ## list the runs: how each ended, and why
	@$(RUN) -m src.runs

compare: $(READY)  ## put runs side by side: RUNS="logs/a/x logs/a/y"
	@[ -n "$(RUNS)" ] || { echo 'error: which runs? -> make compare RUNS="logs/a/x logs/a/y"' >&2; exit 2; }
	@$(RUN) -m src.runs $(RUNS)

test: $(READY)  ## run the tests, but for the long ones
	@$(RUN) -m pytest -n 2 --dist worksteal -m "not long" $(ARGS)

test-long: $(READY)  ## run the long tests: hundreds of kills, every step of a run
	@$(RUN) -m pytest -n 2 --dist worksteal -m long $(ARGS)

check: $(READY)  ## ruff and mypy
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check . && $(RUN) -m mypy

schema: $(READY)  ## renew configs/schema.json, from which editors complete and explain the keys of configs
	@$(RUN) -m src.schema

rename:  ## give your fork its name: NAME=mine
	@echo '$(NAME)' | grep -qE '^[a-z][a-z0-9_-]*$$' || \
	  { echo 'error: a name of small letters, digits, - and _ is needed -> make rename NAME=mine' >&2; exit 2; }
	@grep -q '^name = "leyden"' pyproject.toml || { echo 'error: it has a name already, in pyproject.toml' >&2; exit 2; }
	@perl -pi -e 's/\bleyden\b/$(NAME)/gi' pyproject.toml requirements.lock README.md configs/default.yaml src/__init__.py
	@[ ! -e $(READY) ] || touch $(READY)  # nothing to install again
	@echo 'Renamed to $(NAME): pyproject.toml, README.md, configs/default.yaml (the W&B project).'

remove: $(READY)  ## take a kind of data out of your fork, with all that only it needs: KIND=text
	@[ -n "$(KIND)" ] || { echo 'error: which kind of data? -> make remove KIND=text' >&2; exit 2; }
	@$(RUN) -m src.remove $(KIND) $(ARGS)

lock:  ## renew requirements.lock from pyproject.toml (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --upgrade --extra dev --no-emit-index-url \
	  --no-emit-find-links --custom-compile-command "make lock" pyproject.toml -o requirements.lock

clean:  ## delete the environment and the caches, not the runs
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .mypy_cache
