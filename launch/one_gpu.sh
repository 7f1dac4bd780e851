#!/usr/bin/env bash
# Runs a command with one GPU: the one whose place in CUDA_VISIBLE_DEVICES, or on the machine, is the number of the process.
#
#   launch/local.sh 8 -- launch/one_gpu.sh python -m psann_jax.main --config=configs/quickstart.py
set -euo pipefail

if [[ $# -eq 0 || -z ${JAX_PROCESS_ID:-} ]]; then
  echo "error: usage: launch/local.sh N -- launch/one_gpu.sh COMMAND..., with one process per GPU" >&2
  exit 2
fi
gpu=$JAX_PROCESS_ID
if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
  IFS=, read -ra gpus <<< "$CUDA_VISIBLE_DEVICES"
  if ((gpu >= ${#gpus[@]})); then
    echo "error: CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES names no GPU for process $gpu" >&2
    exit 2
  fi
  gpu=${gpus[gpu]}
fi
CUDA_VISIBLE_DEVICES=$gpu exec "$@"
