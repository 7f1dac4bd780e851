#!/usr/bin/env bash
# Runs a command on all hosts of a Cloud TPU slice, in the foreground; JAX detects the hosts.
#
#   PROJECT=p ZONE=us-east5-a TPU=my-v5e launch/tpu_vm.sh install
#   PROJECT=p ZONE=us-east5-a TPU=my-v5e launch/tpu_vm.sh run \
#       --config=configs/waveresnet_small.py --workdir=gs://BUCKET/runs/small --config.data.cache_dir=/tmp/psann_jax
#   PROJECT=p ZONE=us-east5-a TPU=my-v5e launch/tpu_vm.sh stop
#
# `install` copies this source tree to every host and installs it with jax[tpu]. `run` trains. Ctrl-C ends the local
# command only, and the run goes on; `stop` lets it save and ends it on all hosts, and the same `run` then resumes it.
# The workdir is in a bucket, or on a disk that all hosts share. Every host prepares the text in its own cache.
#
# The hosts need Python 3.11 or newer. PYTHON names it if it is not python3, as on Ubuntu 22.04: PYTHON=python3.12.
set -euo pipefail

usage() {
  echo "error: usage: PROJECT=... ZONE=... TPU=... launch/tpu_vm.sh install | run FLAGS... | stop" >&2
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
python=${PYTHON:-python3}

on_all() {
  gcloud compute tpus tpu-vm ssh "$TPU" --project="$PROJECT" --zone="$ZONE" --worker=all --command="$1"
}

case $action in
  install)
    archive=$(mktemp)
    trap 'rm -f "$archive"' EXIT
    tar -C "$here" --exclude=./.git --exclude=./runs -czf "$archive" .
    gcloud compute tpus tpu-vm scp "$archive" "$TPU:$target.tar.gz" --project="$PROJECT" --zone="$ZONE" --worker=all
    on_all "mkdir -p $target && tar -C $target -xzf $target.tar.gz && $python -m pip install -q -e './${target}[buckets]' 'jax[tpu]'"
    ;;
  run)
    [[ $# -ge 1 ]] || usage
    on_all "cd $target && exec $python -m psann_jax.main $(printf '%q ' "$@")"
    ;;
  stop)
    # The brackets keep the pattern from matching the shell that runs this command.
    on_all "pkill -TERM -f '[p]sann_jax.main' || echo 'no run here'"
    ;;
  *) usage ;;
esac
