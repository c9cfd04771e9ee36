# make up      a cluster on this machine: `make up ARGS="--prefill 2 --model FOLDER"`
# make test    every check and test; what CI runs
# make chaos   break a running cluster in every way we know, for about 35 minutes (ARGS="--chaos-seed 7")
# make compat  what others say of the API: SDK, description, LangChain (ARGS="sdk tests/api_resources/test_models.py")
# make check   format, lint, types, layers, generated code
# make bench   measure (ARGS="...")        make proto   regenerate the gRPC stubs
# make install everything for development  make clean   remove what can be made again
#
# Variables: PYTHON (3.11 or newer), VENV, TORCH (requirement for torch), TEST_PROCESSES, ARGS.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := up

is_recent := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python $(is_recent) 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
TEST_PROCESSES ?= 2
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Newer builds of torch for x86-64 may bring gigabytes of CUDA libraries, which only hosts with a GPU need.
TORCH ?= $(if $(wildcard /dev/nvidia[0-9]*),torch>=2.13,torch==2.13.0)

STUBS := services/rpc/tandem_pb2.py services/rpc/tandem_pb2.pyi services/rpc/tandem_pb2_grpc.py services/rpc/tandem_pb2_grpc.pyi
PROTOC = PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iservices/rpc=proto \
	--python_out=$(1) --mypy_out=quiet:$(1) --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) services/rpc/tandem.proto

.PHONY: up install check format-check lint types layers stubs test compat chaos model proto bench clean

up: $(VENV)/.installed
	@$(BIN)/tandem up $(ARGS)

install: $(VENV)/.installed-dev

$(BIN)/python:
	@test -n "$(PYTHON)" && $(PYTHON) $(is_recent) || \
		{ echo "Python 3.11 or newer is needed; name one with make PYTHON=..."; exit 1; }
	@echo "Installing into $(VENV), once; this takes some minutes."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) install --quiet '$(TORCH)'
	$(PIP) install --quiet --editable '.[gateway,worker,embedded-redis,cli]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(PIP) install --quiet --editable '.[dev]'
	@touch $@

check: format-check lint types layers stubs

format-check: install
	$(BIN)/ruff format --check .

lint: install
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

layers: install
	$(BIN)/lint-imports

# The committed stubs are what proto/ gives.
stubs: install
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(call PROTOC,"$$folder"); \
	for stub in $(STUBS); do diff --brief "$$stub" "$$folder/$$stub" || { echo "run: make proto"; exit 1; }; done; \
	echo "generated stubs are up to date"

test: check model
	$(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

# Downloads packages once, into ~/.cache/tandem/compat; docs/testing.md.
compat: install model
	$(BIN)/python -m tests.compat $(ARGS)

# The long forms of tests/chaos, with progress; docs/reliability.md.
chaos: install model
	$(BIN)/pytest tests/chaos --chaos-long --verbose $(ARGS)

# The models that tests use, so that no test downloads anything.
model: install
	@for dtype in bfloat16 float32; do \
		$(BIN)/python -m services.cli.prepare --model smollm2 --dtype $$dtype --cache-dir ~/.cache/tandem; done
	@$(BIN)/python -m services.cli.prepare --embedding-model minilm --cache-dir ~/.cache/tandem

proto: install
	$(call PROTOC,.)

bench: install
	$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find services tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
