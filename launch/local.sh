#!/usr/bin/env bash
# Runs `python -m launch.train ARGS` as N processes of one run on this machine.
#
#   launch/local.sh N [--config=... --workdir=... ...]
#
# DEVICES_PER_PROCESS=4  gives each process that many virtual CPU devices.
# PYTHON=...             the interpreter (default: python).
# MODULE=...             another entry point than launch.train.
# GRACE=5                seconds that the others get to end by themselves when one process fails; then they are killed.
#
# Every line of output starts with the rank it comes from. SIGTERM and SIGINT are passed on to all as SIGTERM, which
# saves and stops. The exit code is that of the first process that failed, or 0. Exit code 75, saved and stopped on
# request, is passed on too, but the others are left to end in their own time. Where the first to fail was ended by a
# signal, the last line names all exit codes.
set -u

if [[ $# -lt 1 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo 'usage: launch/local.sh N [arguments of launch.train]' >&2
  exit 2
fi
n=$1
shift
python=${PYTHON:-python}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])') || exit 1
export LLM_JAX_COORDINATOR=127.0.0.1:$port LLM_JAX_NUM_PROCESSES=$n PYTHONUNBUFFERED=1
if [[ -n ${DEVICES_PER_PROCESS:-} ]]; then
  export JAX_PLATFORMS=cpu
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES_PER_PROCESS"
fi

label() {
  # The labels go on until the processes close their output: an interrupt must not take the last lines away.
  trap '' INT TERM
  local line
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

signal_all() {
  local pid
  for pid in "${pids[@]}"; do kill "-$1" "$pid" 2>/dev/null; done
}

pids=()
labels=()
trap 'signal_all TERM' TERM INT
for ((rank = 0; rank < n; rank++)); do
  exec {pipe}> >(label "$rank")
  labels+=($!)
  LLM_JAX_PROCESS_ID=$rank "$python" -m "${MODULE:-launch.train}" "$@" >&"$pipe" 2>&1 {pipe}>&- &
  pids+=($!)
  exec {pipe}>&-
done

status=0
deadline=
codes=()
waiting=("${!pids[@]}")
while ((${#waiting[@]})); do
  still=()
  for rank in "${waiting[@]}"; do
    if kill -0 "${pids[rank]}" 2>/dev/null; then
      still+=("$rank")
    else
      wait "${pids[rank]}"
      code=$?
      codes[rank]=$code
      if ((code != 0 && status == 0)); then
        status=$code
      fi
      if ((code != 0 && code != 75)) && [[ -z $deadline ]]; then
        status=$code
        deadline=$((SECONDS + ${GRACE:-5}))
      fi
    fi
  done
  waiting=(${still[@]+"${still[@]}"})
  if [[ -n $deadline ]] && ((SECONDS > deadline)); then signal_all KILL; fi
  ((${#waiting[@]})) && sleep 0.2
done
wait "${labels[@]}" 2>/dev/null
if ((status > 128)); then  # what a process says whose neighbour was lost is jax's: stacks and aborts
  echo "error: exit codes of the processes: ${codes[*]} (128 + N: ended by signal N);" \
    'the same command goes on from the newest checkpoint' >&2
fi
exit "$status"
