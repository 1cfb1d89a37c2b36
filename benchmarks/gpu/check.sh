#!/bin/sh
# Measures the package on a CUDA GPU in under 8 minutes and writes benchmarks/gpu/RESULTS.md; on a CPU, at toy sizes, that it works.
cd "$(dirname "$0")/../.." || exit 1
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
PYTHONPATH="$PWD" exec "${PYTHON:-python}" benchmarks/gpu/check.py "$@"
