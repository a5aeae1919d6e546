# One command for each thing a person does here. Each makes .venv first where it is missing:
# Python 3.11 or newer, make and pip are all it takes.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup models demo test coverage chaos lint format bench load clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## make .venv and install Trellis with its extras (the others do it by themselves)
	@.ci/venv.sh "$(PYTHON)"

models:  ## the same with what the tests need besides: an embedding model, and torch to run it
	@.ci/venv.sh "$(PYTHON)" models

demo: setup  ## run the flights workflow on an embedded stack, from nothing to its report
	@$(BIN)/python examples/flights/demo.py

test: models  ## run all tests in parallel (ARGS="tests/unit -k retry" for some of them)
	@.ci/test.sh $(ARGS)

coverage: models  ## run all tests, count the lines they reach in every process, fail under the limit
	@COVERAGE=1 .ci/test.sh $(ARGS)

chaos: setup  ## faults at named points of real workers (CASES=1000 SEED=1; ONLY=… plays one case)
	@cd tests && ../$(BIN)/python -m chaos $(if $(CASES),--cases $(CASES)) $(if $(SEED),--seed $(SEED)) \
		$(if $(ONLY),--only $(ONLY)) $(if $(FIRST),--first $(FIRST)) \
		$(if $(LANES),--lanes $(LANES)) $(if $(TOGETHER),--together $(TOGETHER)) $(if $(KEEP),--keep $(KEEP))

lint: setup  ## ruff, mypy strict, the direction of imports
	@.ci/types.sh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## measure the engine against Celery's own canvas; writes benchmarks/out/engine.json
	@$(BIN)/python benchmarks/engine.py $(ARGS)

load: setup  ## put the engine under load (ARGS="--size 0.1 --minutes 5" for less of it)
	@$(BIN)/python benchmarks/load.py runs large waiting steady $(ARGS)

clean:  ## remove all that can be made again (.trellis, the data of `trellis up`, stays)
	rm -rf .venv .ci/types build dist celery_trellis.egg-info benchmarks/out examples/flights/out
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
