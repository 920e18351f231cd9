#!/usr/bin/env bash
# Runs `python -m launch.train ARGS` as N processes of one run on this machine.
#
#   launch/local.sh N [--config=... --workdir=... ...]
#
# DEVICES_PER_PROCESS=4  gives each process that many virtual CPU devices.
# PYTHON=...             the interpreter (default: python).
# MODULE=...             another entry point than launch.train.
# GRACE=15               seconds that the others get to end by themselves when one process fails; then they are killed.
#
# Every line of output starts with the rank it comes from. SIGTERM, SIGINT and SIGHUP are passed on to all as SIGTERM,
# which saves and stops; so does a process that has saved and stopped on request (exit code 75). The exit code is that
# of the process that failed first, or 0. Then the last line says which one that was, and of what it ended.
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
said=$(mktemp -d) || exit 1  # the last line of each process
trap 'rm -rf "$said"' EXIT

label() {
  # The labels go on until the processes close their output: an interrupt must not take the last lines away.
  trap '' INT TERM HUP
  local line last=
  while IFS= read -r line || [[ -n $line ]]; do
    printf '[%s] %s\n' "$1" "$line"
    [[ -n $line ]] && last=$line
  done
  printf '%s' "$last" >"$said/$1" 2>/dev/null
}

signal_all() {
  local rank
  for rank in "${waiting[@]}"; do kill "-$1" "${pids[rank]}" 2>/dev/null; done
}

describe() {  # an exit code, in words
  if (($1 > 128)); then
    echo "was ended by signal $(($1 - 128)) (SIG$(kill -l "$1" 2>/dev/null || echo '?'))"
  else
    echo "ended with exit code $1"
  fi
}

weight() {  # of two that are seen to end at once, the heavier one ended first: the others follow it
  case $1 in
    0) echo 0 ;;
    75) echo 1 ;;
    134) echo 2 ;;  # jax aborts where it has lost another process
    70) echo 3 ;;  # and so does llm_jax, naming it
    *) echo 4 ;;
  esac
}

pids=()
labels=()
waiting=()
trap 'signal_all TERM' TERM INT HUP
for ((rank = 0; rank < n; rank++)); do
  exec {pipe}> >(label "$rank")
  labels+=($!)
  LLM_JAX_PROCESS_ID=$rank "$python" -m "${MODULE:-launch.train}" "$@" >&"$pipe" 2>&1 {pipe}>&- &
  pids+=($!)
  waiting+=("$rank")
  exec {pipe}>&-
done

first=  # the rank of the process that failed first
status=0
deadline=
ask_at=
codes=()
while ((${#waiting[@]})); do
  still=()
  heaviest=0
  for rank in "${waiting[@]}"; do
    if kill -0 "${pids[rank]}" 2>/dev/null; then
      still+=("$rank")
      continue
    fi
    wait "${pids[rank]}" 2>/dev/null
    codes[rank]=$?
    if ((status == 0 || status == 75)) && (($(weight "${codes[rank]}") > heaviest)); then
      heaviest=$(weight "${codes[rank]}")
      first=$rank
    fi
  done
  waiting=(${still[@]+"${still[@]}"})
  if ((heaviest)); then
    status=${codes[first]}
    if ((status == 75)); then
      ask_at=$((SECONDS + 3))  # it has told the others, unless it stopped before they had met
    else
      deadline=$((SECONDS + ${GRACE:-15}))
    fi
  fi
  if [[ -n $ask_at ]] && ((SECONDS > ask_at)); then
    signal_all TERM
    ask_at=
  fi
  if [[ -n $deadline ]] && ((SECONDS > deadline)); then signal_all KILL; fi
  ((${#waiting[@]})) && sleep 0.1
done
wait "${labels[@]}" 2>/dev/null
if ((status != 0 && status != 75)); then
  last=$(cat "$said/$first" 2>/dev/null)
  echo "error: process $first ended first: it $(describe "$status")${last:+, after \"$last\"};" \
    "exit codes of all: ${codes[*]}" >&2
fi
exit "$status"
