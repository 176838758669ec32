# `make` alone lists the targets. CRIU needs root; sudo is used when you are somebody else.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup setup-kubernetes tools demo test check bench figures docs

SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E)
# As an installed package is, also where PYTHONDONTWRITEBYTECODE is set: else each command compiles itself anew.
COMPILED := .venv/bin/python -m compileall -q cria $(wildcard .venv/lib/criu)
PYTEST := $(SUDO) .venv/bin/python -m tests $(PYTEST_ARGS)

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## bring what demo and tests need: .venv with cria, CRIU, vLLM for the CPU
	@scripts/setup

setup-kubernetes: setup ## bring what tests/kubernetes needs besides: containerd and runc, beside the system
	@scripts/setup kubernetes

tools: # what check and docs need: no CRIU, no vLLM
	@scripts/setup cria

demo: setup ## start vLLM on the CPU, dump it, restore it on another port, compare tokens
	$(SUDO) .venv/bin/cria demo

test: setup setup-kubernetes ## all tests: unit, integration (real CRIU), kubernetes (real containerd), gpu (where there is one), engine (real vLLM)
	$(PYTEST) tests/unit -m 'not many'
	$(PYTEST) tests/unit -m many
	$(PYTEST) tests/integration
	$(PYTEST) tests/kubernetes
	$(PYTEST) tests/gpu
	$(PYTEST) tests/engine

check: tools ## ruff, mypy, shellcheck; are the generated pages up to date?
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy cria scripts benchmarks
	.venv/bin/shellcheck -x scripts/setup .ci/run
	.venv/bin/python scripts/generate_docs.py --check

bench: setup ## cold start, CRIU alone and cria by turns, in one run: a table; about ten minutes
	@$(COMPILED)
	$(SUDO) .venv/bin/cria bench $(BENCH_ARGS)

figures: setup ## the same, and its figures and picture go into docs/explanation/speed.md
	@$(COMPILED)
	$(SUDO) .venv/bin/cria bench --json $(BENCH_ARGS) > build/speed.json
	cp build/speed.json docs/explanation/speed.json
	.venv/bin/python scripts/generate_docs.py

docs: tools ## write docs/reference/errors.md and commands.md anew from the code
	.venv/bin/python scripts/generate_docs.py
