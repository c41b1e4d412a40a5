# The two commands: `make demo` and `make test`. Each creates the environment on a fresh machine (Python 3.11 or 3.12).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread per process: stages share the cores, and two threads each on two busy cores are slower by far.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.PHONY: demo test test-slow lint clean help

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/'

# Compiled once here: else every process of a user who sets PYTHONDONTWRITEBYTECODE compiles PyTorch again.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info[:2] in ((3, 11), (3, 12)), f"Python 3.11 or 3.12 is needed, this is {sys.version}: make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "uv==0.13.8"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e ".[test]"
	touch $@

demo: $(VENV)/.installed ## install, then run the whole experiment on generated images (minutes, 2 cores, no GPU)
	$(BIN)/python run_nnunet.py --config-name=demo

test: $(VENV)/.installed lint ## install, then lint, type check and test (what CI runs)
	$(BIN)/python -m pytest -m "not slow" -n 2 --no-loadscope-reorder

test-slow: $(VENV)/.installed ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy common dataset diffusion engine evaluation features federated gan generators memorization nnunetv2_mod pipeline sharing studies training run_federated.py run_nnunet.py run_scaling.py

clean: ## remove the environment, not the runs
	rm -rf $(VENV)
