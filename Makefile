# The commands of this project. `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3.11
ENGINE ?= embedded
CACHE ?= $(or $(HEADRACE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/headrace)
PORT ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install install-main install-engine install-clarifai demo test lint type format docs reference bench check check-system lock clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: ## everything: environments, engine, object store, corpus, run, report
	@$(MAKE) --no-print-directory -j2 install-main $(if $(filter embedded,$(ENGINE)),install-engine)
	@$(BIN)/python -m flows.demo --engine $(ENGINE)

test: ## the test suite
	@$(MAKE) --no-print-directory -j2 install
	@$(BIN)/python -m pytest

install: install-main install-engine

install-main: .venv/installed

.venv/installed: requirements/uv.lock requirements/dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "$(PYTHON) is not Python 3.11; give one: make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "[orchestrator] creating .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock
	@echo "[orchestrator] installing $$(grep -c '==' requirements/dev.lock) locked packages"
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/dev.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --offline -e .
	@touch $@
	@echo "[orchestrator] ready"

install-clarifai: .venv-clarifai/installed

.venv-clarifai/installed: requirements/clarifai.lock | .venv/installed
	@echo "[clarifai] creating .venv-clarifai"
	@$(PYTHON) -m venv --clear .venv-clarifai
	@$(BIN)/uv pip install --quiet --compile-bytecode --python .venv-clarifai/bin/python --require-hashes -r requirements/clarifai.lock
	@touch $@

install-engine:
	@$(PYTHON) -m engine.install --venv .venv-engine --cache $(CACHE)

lint: install-main ## ruff, formatting and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

type: install-main ## mypy --strict on the five packages
	@$(BIN)/mypy

format: install-main ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: install-main ## run the commands and code that README and docs show
	@$(BIN)/python -m pytest tests/docs

reference: install-main ## write docs/pipeline.md, docs/profile.md and docs/planner.md from what they describe
	@$(BIN)/python -m config.reference --write
	@$(BIN)/python -m flows.planner_page --write

bench: install ## measure against peers in one run, about half an hour; benchmarks/README.md has the numbers
	@$(BIN)/python -m benchmarks.client_cost
	@$(BIN)/python -m benchmarks.listing
	@$(BIN)/python -m benchmarks.pdf_reading
	@$(BIN)/python -m benchmarks.sheet_reading
	@$(BIN)/python -m benchmarks.video_reading
	@$(BIN)/python -m benchmarks.citation_check
	@$(BIN)/python -m benchmarks.vector_search
	@$(BIN)/python -m benchmarks.memory_growth
	@$(BIN)/python -m benchmarks.corpus_answer
	@$(BIN)/python -m benchmarks.one_group
	@$(BIN)/python -m benchmarks.pay_once
	@$(BIN)/python -m benchmarks.resuming --documents 200
	@$(BIN)/python -m benchmarks.pace_keeping
	@$(BIN)/python -m benchmarks.run_against_loop --offline

check: install ## longer tests: runs killed hundreds of times; a folder of real files, named by HEADRACE_CORPUS
	@$(BIN)/python -m pytest -m slow
	@$(BIN)/python -m pytest -m corpus --timeout 3600

check-system: install-main install-clarifai ## tests that need the clarifai package, or Debian's chromium, tesseract-ocr, poppler-utils
	@$(BIN)/python -m pytest -m system

LOCK := $(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-header --no-annotate \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28

lock: install-main ## resolve all versions anew and write requirements/*.lock
	$(LOCK) requirements/uv.in -o requirements/uv.lock
	$(LOCK) pyproject.toml -o requirements/main.lock
	$(LOCK) pyproject.toml --extra dev --extra demo -o requirements/dev.lock
	$(LOCK) requirements/clarifai.in -o requirements/clarifai.lock

clean: ## remove environments and what the demo left; keeps the cache of models
	rm -rf .venv .venv-engine .venv-clarifai .headrace .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
