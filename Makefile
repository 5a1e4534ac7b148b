# Everything from python3 and a network to PyPI: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install demo test lint types check bench test-slow test-faults test-cluster plan soak audit readme docs clean
.DEFAULT_GOAL := help

help:  ## This list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

install: $(VENV)/ready  ## .venv with the pinned versions.

demo: install  ## Score a generated archive in a real S3 server on this machine.
	$(BIN)/python jobs/demo.py

test: install  ## The tests that every change must pass.
	$(BIN)/python -m pytest -m "not slow and not faults and not cluster"

test-cluster: install  ## Submission, several nodes, metrics: real raylets, a job server, a Prometheus; under 20 minutes.
	$(BIN)/python -m pytest -m cluster

plan: install  ## Machines, hours and price of a night of a million strips; costs measured by benchmarks/stage_costs.py.
	$(BIN)/python jobs/plan_capacity.py --strips 1000000

test-slow: install  ## The figures on real images, and what takes minutes.
	$(BIN)/python -m pytest -m slow

test-faults: install .faults-venv/ready  ## Breaks things on purpose: store, network, processes, nodes, disk; under 25 minutes.
	$(BIN)/python -m pytest -m "faults and not slow"

soak: install  ## 20,000 small images in one run: memory stays flat. STEELRAY_SOAK_IMAGES=N: another number.
	$(BIN)/python -m pytest -s tests/faults/test_soak.py

audit: install .audit-venv/ready  ## Known vulnerabilities of the pinned versions (asks PyPI), and ruff's security rules.
	.audit-venv/bin/pip-audit --requirement requirements.txt --no-deps --disable-pip --strict
	$(BIN)/ruff check --select S .

# tools with pins of their own, which would clash with ours
.faults-venv/ready:
	$(PYTHON) -m venv .faults-venv
	.faults-venv/bin/pip install --quiet --disable-pip-version-check mitmproxy==11.0.2
	touch $@

.audit-venv/ready:
	$(PYTHON) -m venv .audit-venv
	.audit-venv/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	touch $@

bench: install  ## All benchmarks, under half an hour on a quiet machine; QUICK=1: under five minutes; FORCE=1: anew.
	$(BIN)/python -m benchmarks.run $(if $(QUICK),--quick) $(if $(FORCE),--force)

lint: install  ## ruff: style, imports, security rules.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## mypy, strict.
	$(BIN)/mypy

check: lint types test  ## All three.

clean:  ## Remove what the demo and the benchmarks left; the environment stays.
	rm -rf .demo .bench

readme: install  ## Write the README's map from the packages.
	$(BIN)/python -m tests.test_readme

docs: install  ## Write the tables of docs/formats.md anew from the schemas.
	$(BIN)/python -m tests.test_docs
