#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster with xpk (https://github.com/AI-Hypercomputer/xpk); JAX detects the hosts. From
# the root of a clone:
#
#   CLUSTER=my-cluster TPU_TYPE=v5litepod-16 launch/xpk.sh NAME \
#       --config=configs/waveresnet_small.py --workdir=gs://BUCKET/runs/small
#
# xpk adds this directory to an image of Python, in which every host installs the package with jax[tpu]. SLICES=2 takes
# two slices (see mesh.slices in docs/settings.md). xpk's own flags, such as --project, --zone and --priority, can be
# given in XPK_FLAGS. Before a pod is moved it gets SIGTERM, on which the run saves and ends with the code 143; xpk
# restarts jobs that end with it, and the run resumes from the bucket. Every host prepares the text in its own cache.
set -euo pipefail

if [[ $# -lt 2 || -z ${CLUSTER:-} || -z ${TPU_TYPE:-} ]]; then
  echo "error: usage: CLUSTER=... TPU_TYPE=... launch/xpk.sh NAME FLAGS..." >&2
  exit 2
fi
name=$1
shift
read -ra more <<< "${XPK_FLAGS:-}"
here=$(cd "$(dirname "$0")/.." && pwd)
exec xpk workload create --cluster="$CLUSTER" --workload="$name" --tpu-type="$TPU_TYPE" --num-slices="${SLICES:-1}" \
  --base-docker-image=python:3.12 --script-dir="$here" --max-restarts=50 --termination-grace-period-seconds=120 \
  "${more[@]}" \
  --command="pip install -q -e '.[buckets]' 'jax[tpu]' && exec psann-jax train --stop_code=143 $(printf '%q ' "$@")"
