# `make run` and `make test` need Python >= 3.11, pip and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check
WHEELS := --require-hashes --only-binary :all:
LOCK := build/lock/bin/uv pip compile --no-config --universal --python-version 3.11 \
	--generate-hashes --custom-compile-command 'make lock' -q
PEER := tests/load/peers/fastapi_users
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup run test test-deploy check generate lint migrate dist lock audit bench check-perf bench-faults test-matrix clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

.venv/.run: requirements.lock requirements-embedded.lock requirements-build.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(INSTALL) $(WHEELS) -r requirements.lock -r requirements-embedded.lock -r requirements-build.lock
	$(INSTALL) --no-deps --no-build-isolation --no-index -e .
	@touch $@

.venv/.dev: requirements-dev.lock .venv/.run
	$(INSTALL) $(WHEELS) -r requirements-dev.lock
	@touch $@

# Committed; generated here only if it is missing.
generated/contract.binpb:
	$(MAKE) generate

setup: .venv/.dev generated/contract.binpb  ## install the dependencies for running, testing and checking

run: .venv/.run generated/contract.binpb  ## start the service with its own Postgres and Valkey
	@exec $(BIN)/academy up

test: setup  ## run the tests (ARGS="-k login -p randomly -p no:cacheprovider")
	$(BIN)/python -m pytest -n auto $(ARGS)

.venv/.deploy: requirements-deploy.lock .venv/.dev
	$(INSTALL) $(WHEELS) -r requirements-deploy.lock
	@touch $@

test-deploy: setup .venv/.deploy  ## run the proxy examples and the steps of the image (Linux)
	TEST_IMAGE=1 $(BIN)/python -m pytest tests/deploy $(ARGS)

check: setup lint  ## run the checks that CI runs before the tests
	mypy
	lint-imports --no-cache
	python .ci/check_functions.py server edge .ci
	sh .ci/generate.sh build/generated
	diff -r -x __pycache__ generated build/generated
	buf lint
	buf format proto --diff --exit-code
	sh .ci/buf_breaking.sh

lint: .venv/.dev  ## check formatting and lint rules
	ruff format --check
	ruff check

generate: .venv/.dev  ## generate the code in generated/ from proto/
	sh .ci/generate.sh generated

migrate: .venv/.run  ## upgrade the schema of the database of DATABASE_URL
	academy migrate

.venv/.bench: requirements-bench.lock .venv/.dev
	$(INSTALL) $(WHEELS) -r requirements-bench.lock
	@touch $@

# A vulnerability in Postgres itself is in no such source: docs/security.md.
audit:  ## look up published advisories for the locked packages
	$(PYTHON) -m venv build/audit && build/audit/bin/pip install -q pip-audit
	$(PYTHON) .ci/audit.py build/audit/bin/pip-audit

bench: setup .venv/.bench  ## run the benchmarks and compare with their targets (ARGS=get_user)
	python .ci/bench.py $(ARGS)

check-perf: setup  ## check the Python calls and the round trips to Postgres of hot RPCs
	$(BIN)/python -m pytest -q tests/performance tests/rpc/test_round_trips.py

bench-faults: setup  ## run the reliability experiments against their bars (ARGS="L4 L7")
	python .ci/bench_faults.py $(ARGS)

test-matrix: setup  ## run tests/e2e and tests/rpc with other Postgres and Redis servers (ARGS=pgbouncer)
	python .ci/test_matrix.py $(ARGS)

# An earlier build leaves modules in build/lib that the source may no longer have.
dist: .venv/.run generated/contract.binpb  ## build the wheel of a production image, in dist/
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation --no-index -w dist .

lock: .venv/.run  ## resolve and write the lock files
	$(PYTHON) -m venv build/lock && build/lock/bin/pip install -q uv
	$(LOCK) requirements.in -c requirements-otel.in -o requirements.lock
	$(LOCK) requirements-build.in -c requirements.lock -o requirements-build.lock
	$(LOCK) requirements-embedded.in -c requirements.lock -o requirements-embedded.lock
	$(LOCK) requirements-otel.in -c requirements.lock -o requirements-otel.lock
	$(LOCK) requirements-dev.in -c requirements.lock -c requirements-build.lock -c requirements-embedded.lock -c requirements-otel.lock -o requirements-dev.lock
	$(LOCK) requirements-deploy.in -c requirements-dev.lock -o requirements-deploy.lock
	$(LOCK) requirements-bench.in -c requirements-dev.lock -o requirements-bench.lock
	$(LOCK) $(PEER)/requirements.in -o $(PEER)/requirements.lock

clean:  ## remove installed and built files; var/ with your data stays
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find server edge tests generated .ci -name __pycache__ -prune -exec rm -rf {} +
