# Two commands: `make up` and `make test`. Both do all the set-up first, and are safe to repeat.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
.DEFAULT_GOAL := help
# Where it is set, each of a mesh's processes compiles its modules anew: a fifth of the time to start one, and of the
# tests, which start hundreds and are rewritten by pytest before they run, some minutes.
export PYTHONDONTWRITEBYTECODE :=
.PHONY: help setup postgres registry up test lint types imports stubs check-stubs schema pins check wheels bench soak clean

help: ## Show what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## Make the virtual environment with every pinned package

$(STAMP): requirements.txt pyproject.toml agent/pyproject.toml controlplane/pyproject.toml
	@echo "making $(VENV) and installing the pinned packages (about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed, $(VENV) has " + sys.version)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e . -e agent -e controlplane
	@touch $@

up: $(STAMP) ## Start the mesh on this machine and show it at work (ONCE=1: stop after the table)
	@$(BIN)/nearmesh dev up $(if $(ONCE),--once)

# Some tests run several control planes over a PostgreSQL server of their own; without its programs they are skipped.
postgres:
	@$(BIN)/python -c 'import sys; from tests.postgres import why_not; sys.exit(bool(why_not()))' || \
		{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing PostgreSQL for the tests" && \
		{ apt-get install -y -qq --no-install-recommends postgresql >/dev/null 2>&1 || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql >/dev/null; }; }; } || \
		echo "no PostgreSQL: the tests of several control planes will be skipped (Debian: apt-get install postgresql)"

# Others push versions to a real registry, and read them with another tool; without the programs they are skipped.
registry:
	@{ command -v docker-registry && command -v skopeo; } >/dev/null || \
		{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing docker-registry and skopeo for the tests" && \
		{ apt-get install -y -qq --no-install-recommends docker-registry skopeo >/dev/null 2>&1 || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends docker-registry skopeo >/dev/null; }; }; } || \
		echo "no docker-registry or no skopeo: some tests will be skipped (Debian: apt-get install docker-registry skopeo)"

test: $(STAMP) postgres registry ## Run the test suite
	$(BIN)/python -m tests.suite

lint: $(STAMP) ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## Check types
	$(BIN)/mypy

imports: $(STAMP) ## Check who imports whom
	$(BIN)/lint-imports

PROTOS := $(wildcard protos/nearmesh/v1/*.proto)
PROTOC = $(BIN)/python -m grpc_tools.protoc -I protos --python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) $(PROTOS)

stubs: $(STAMP) ## Generate the gRPC stubs from protos/
	$(call PROTOC,.)

check-stubs: $(STAMP) ## Fail when the committed stubs are not those of protos/
	@rm -rf build/stubs && mkdir -p build/stubs
	@$(call PROTOC,build/stubs)
	@for file in build/stubs/nearmesh/v1/*; do cmp $$file nearmesh/v1/$$(basename $$file) || exit 1; done
	@echo "stubs are fresh"

schema: $(STAMP) ## Write the JSON schema of model.toml
	$(BIN)/python -m nearmesh.package.schema

pins: ## Resolve requirements.in anew and write every pin to requirements.txt
	@rm -rf build/pins && $(PYTHON) -m venv build/pins
	@build/pins/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.in
	@echo '# Every pin of the development environment; `make pins` writes it from requirements.in.' > requirements.txt
	@build/pins/bin/python -m pip freeze >> requirements.txt

check: lint types imports check-stubs ## Everything but the tests

wheels: $(STAMP) ## Build the three distributions into dist/
	@rm -rf dist build/lib build/bdist* agent/build controlplane/build
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist . ./agent ./controlplane
	@ls dist

bench: $(STAMP) ## Measure, and write benchmarks/results
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.client_policy
	$(BIN)/python -m benchmarks.variants
	$(BIN)/python -m benchmarks.round_overhead
	$(BIN)/python -m benchmarks.training_beside_serving
	$(BIN)/python -m benchmarks.vectors
	$(BIN)/python -m benchmarks.vectors_beside_serving

soak: $(STAMP) postgres ## The fault and fuzz runs at full counts; results go to tests/faults/results
	$(BIN)/python -m tests.faults.soak

clean: ## Remove the virtual environment, the local mesh's state and everything built
	@rm -rf $(VENV) .nearmesh build dist agent/build controlplane/build *.egg-info agent/*.egg-info controlplane/*.egg-info
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
