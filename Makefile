# Two commands on a fresh machine: `make quickstart` and `make test`. Each sets up what it needs, once.

# Python 3.11 or newer.
PYTHON ?= python3
# What pip is given to install torch; a particular build needs its own index, see README.md.
TORCH ?= torch<2.14
VENV := .venv
BIN := $(VENV)/bin

# One thread a process: arms and tests run side by side, and small matrices gain nothing from more.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test test-fast docs clean

quickstart: $(VENV)/.run
	$(BIN)/apo-bench run experiments/quickstart.yaml

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q -n 2

# What trains nothing, starts nothing and takes no seconds.
test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

docs: $(VENV)/.dev
	$(BIN)/python -m apo_bench.cli.generate_docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV)

# torch goes first and by itself: left to the project's open range, pip would take a CUDA build of several gigabytes.
define install
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e "$(1)"
	touch $@
endef

$(VENV)/.run: pyproject.toml
	$(call install,.)

$(VENV)/.dev: pyproject.toml
	$(call install,.[dev])
	touch $(VENV)/.run
