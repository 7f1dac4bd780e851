#!/usr/bin/env bash
# Runs a command on all hosts of a Cloud TPU slice, in the foreground; JAX detects the hosts.
#
#   PROJECT=p ZONE=us-east5-a TPU=my-v5e launch/tpu_vm.sh install
#   PROJECT=p ZONE=us-east5-a TPU=my-v5e launch/tpu_vm.sh run \
#       --config=configs/waveresnet_small.py --workdir=gs://BUCKET/runs/small --config.data.cache_dir=/tmp/psann_jax
#
# `install` copies this source tree to every host and installs it with jax[tpu]. `run` trains; Ctrl-C saves and ends the
# run on all hosts. The workdir is in a bucket, or on a disk that all hosts share. Every host prepares the text in its
# own cache.
set -euo pipefail

usage() {
  echo "error: usage: PROJECT=... ZONE=... TPU=... launch/tpu_vm.sh install | run FLAGS..." >&2
  exit 2
}

[[ $# -ge 1 ]] || usage
for name in PROJECT ZONE TPU; do
  [[ -n ${!name:-} ]] || usage
done
action=$1
shift
here=$(cd "$(dirname "$0")/.." && pwd)
target=psann_jax_source

on_all() {
  gcloud compute tpus tpu-vm ssh "$TPU" --project="$PROJECT" --zone="$ZONE" --worker=all --command="$1"
}

case $action in
  install)
    archive=$(mktemp)
    trap 'rm -f "$archive"' EXIT
    tar -C "$here" --exclude=./.git --exclude=./runs -czf "$archive" .
    gcloud compute tpus tpu-vm scp "$archive" "$TPU:$target.tar.gz" --project="$PROJECT" --zone="$ZONE" --worker=all
    on_all "mkdir -p $target && tar -C $target -xzf $target.tar.gz && pip install -q -e './${target}[buckets]' 'jax[tpu]'"
    ;;
  run)
    [[ $# -ge 1 ]] || usage
    on_all "cd $target && exec python3 -m psann_jax.main $(printf '%q ' "$@")"
    ;;
  *) usage ;;
esac
