# `make` alone lists the targets. CRIU needs root; other users run it with sudo.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup setup-kubernetes tools demo test check bench figures docs

SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E)
# An installed package is compiled. Where PYTHONDONTWRITEBYTECODE is set, every command of a checkout would compile itself.
COMPILED := .venv/bin/python -m compileall -q cria $(wildcard .venv/lib/criu)
PYTEST := $(SUDO) .venv/bin/python -m tests $(PYTEST_ARGS)

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## install what demo and tests need: .venv with cria, CRIU, vLLM for the CPU
	@scripts/setup

setup-kubernetes: setup ## also install what tests/kubernetes needs: containerd and runc, in .venv
	@scripts/setup kubernetes

tools: # what check and docs need, without CRIU and vLLM
	@scripts/setup cria

demo: setup ## start vLLM on the CPU, dump it, restore it on another port, compare tokens
	$(SUDO) .venv/bin/cria demo

test: setup setup-kubernetes ## run all tests: unit, integration (real CRIU), kubernetes (real containerd), gpu (where there is one), engine (real vLLM)
	$(PYTEST) tests/unit -m 'not many'
	$(PYTEST) tests/unit -m many
	$(PYTEST) tests/integration
	$(PYTEST) tests/kubernetes
	$(PYTEST) tests/gpu
	$(PYTEST) tests/engine

check: tools ## run ruff, mypy and shellcheck, and check that the generated pages are up to date
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/shellcheck -x scripts/setup .ci/run
	.venv/bin/python scripts/generate_docs.py --check

bench: setup ## compare a cold start, CRIU alone and cria in one run; takes about ten minutes
	@$(COMPILED)
	$(SUDO) .venv/bin/cria bench $(BENCH_ARGS)

figures: setup ## run the benchmark and put its figures and picture into docs/explanation/speed.md
	@$(COMPILED)
	$(SUDO) .venv/bin/cria bench --json $(BENCH_ARGS) > build/speed.json
	cp build/speed.json docs/explanation/speed.json
	.venv/bin/python scripts/generate_docs.py

docs: tools ## generate docs/reference and the figures of docs/explanation/speed.md
	.venv/bin/python scripts/generate_docs.py
