#!/usr/bin/env bash
# Starts N processes of a command on this machine; JAX's distributed runtime joins them into one run.
#
#   launch/local.sh 4 -- python -m psann_jax.main --config=configs/quickstart.py
#
# Every process sees all devices of the machine. With GPUs, put launch/one_gpu.sh before the command, which gives each
# process its own. On CPUs, the processes share the cores; XLA_FLAGS=--xla_force_host_platform_device_count=2 gives each
# process two devices.
#
# The output of process 0 is shown; of the other processes, only standard error, prefixed with their number. Ctrl-C,
# SIGTERM and SIGUSR1 are forwarded to all processes, which save and exit. The exit code is that of the first process that
# fails; the others then have GRACE seconds (default 60) to exit.
set -uo pipefail

usage() {
  echo "error: usage: launch/local.sh N -- COMMAND..., with N >= 1 processes" >&2
  exit 2
}

[[ $# -ge 3 && $1 =~ ^[1-9][0-9]*$ && $2 == -- ]] || usage
n=$1
shift 2

if [[ -z ${JAX_COORDINATOR_ADDRESS:-} ]]; then
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port
fi
export JAX_NUM_PROCESSES=$n

prefix_lines() {
  local line
  while IFS= read -r line; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

pids=()
for ((i = 0; i < n; i++)); do
  if ((i == 0)); then
    JAX_PROCESS_ID=0 "$@" &
  else
    JAX_PROCESS_ID=$i "$@" > /dev/null 2> >(prefix_lines "$i" >&2) &
  fi
  pids+=($!)
done

forward() {
  local pid
  for pid in "${pids[@]}"; do
    kill -s "$1" "$pid" 2> /dev/null
  done
}
trap 'forward TERM' TERM INT
trap 'forward USR1' USR1

code=0
deadline=
while ((${#pids[@]} > 0)); do
  sleep 0.2
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2> /dev/null && continue
    wait "${pids[i]}"
    result=$?
    unset "pids[i]"
    if ((result != 0)); then
      echo "process $i of $n ended with code $result" >&2
      if ((code == 0)); then
        code=$result
        deadline=$((SECONDS + ${GRACE:-60}))
      fi
    fi
  done
  if [[ -n $deadline ]] && ((SECONDS > deadline)); then
    forward KILL
  fi
done
exit "$code"
