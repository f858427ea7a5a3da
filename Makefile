# Paidan (派单). `make help` lists what there is. Works with GNU make 3.81 and later (Linux, macOS).

# The interpreter the environment is made with; PYTHON=python3.13 chooses another. A newer one than 3.13 is taken only where
# there is nothing else: it may have to compile what others install.
PYTHON ?= $(shell for below in 14 99; do for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	"$$p" -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, $$below))" 2>/dev/null && { echo "$$p"; exit; }; done; done)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq install --no-input --no-warn-script-location
CODE := services shared deploy tests

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo up test check lint format soak bench schema lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## 演示 the whole stack on this machine, a day of requests, a summary; then everything stops
	@$(BIN)/paidan demo

up: $(STAMP) ## 启动 the stack in the foreground, with a working login; Ctrl-C drains
	@$(BIN)/paidan up

test: lint ## lint, types and every test, against real servers it starts itself
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: format test ## format first, then what `make test` does

lint: $(STAMP) ## ruff, mypy strict, import contracts
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP) ## put the code into its form
	@$(BIN)/ruff check --fix-only --quiet $(CODE)
	@$(BIN)/ruff format $(CODE)

soak: $(STAMP) ## the long versions of the tests
	@$(BIN)/python -m pytest -m soak --timeout=3600 --durations=10

bench: $(STAMP) ## measure beside the bare limits; writes build/bench.json
	@$(BIN)/python -m tests.bench

schema: $(STAMP) ## write docs/schemas and docs/asyncapi.json from the catalogue of facts
	@$(BIN)/paidan schema

lock: ## resolve pyproject.toml anew into requirements.lock (needs uv)
	@command -v uv >/dev/null 2>&1 || { echo "make lock 需要 uv / make lock needs uv (python3 -m pip install uv)" >&2; exit 2; }
	@{ echo '# Made by `make lock` from pyproject.toml: names, versions and hashes, no addresses.'; \
	  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url --upgrade --extra dev pyproject.toml; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean: ## remove what was built here: the environment, caches, build/; a stack's data (.paidan) stays
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find $(CODE) -type d -name __pycache__ -prune -exec rm -rf {} +

# Made on demand, and again when the list of dependencies has changed.
$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "需要 Python 3.11 或更新版本：请安装，或用 make PYTHON=/路径/python3 指定 / Python 3.11 or newer is needed: install it, or name it with make PYTHON=/path/to/python3" >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Python 缺少 venv 或 ensurepip（Debian/Ubuntu：apt install python3-venv）/ this Python lacks venv or ensurepip (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@test -x $(BIN)/python && $(BIN)/python -c 'import pip' 2>/dev/null || "$(PYTHON)" -m venv $(VENV)
	@echo "正在安装依赖 / installing what requirements.lock lists"
	@$(PIP) --require-hashes -r requirements.lock && $(PIP) --no-deps --no-build-isolation --editable . || { \
	  echo "依赖安装失败，原因见上；网络恢复后再次运行 make 即可 / the dependencies could not be installed, see above; run make again once that is mended" >&2; exit 2; }
	@touch $(STAMP)
