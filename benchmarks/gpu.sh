#!/usr/bin/env bash
# Every figure of one GPU, as many in one call as 8.5 minutes hold: training, finetuning, prompt pools and sampling,
# beside transformers on torch where torch sees the GPU. The same call again measures the rows that are left. Needs this
# package with the extra [cuda] or [cuda12]; no SeqIO, no TensorFlow. --data_dir=DIR --vocabulary=DIR take CodeTask-CL's
# real records; --smoke runs all of it, tiny, on a CPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
