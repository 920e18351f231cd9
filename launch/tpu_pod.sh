#!/usr/bin/env bash
# Runs `python -m launch.train ARGS` on all hosts of a TPU pod slice, which it asks for, and asks for again when it was
# taken away.
#
#   launch/tpu_pod.sh NAME ZONE ACCELERATOR --config=... --workdir=/shared/runs/mine [...]
#
# such as launch/tpu_pod.sh mine us-east5-a v5litepod-64 ... It needs gcloud, logged in, with a project.
#
# REPOSITORY=URL   what the hosts clone (default: the remote `origin` of this clone).
# SETUP=...        what the hosts run before that (default: nothing), such as the mounting of a shared file system.
# RUNTIME=...      image of the hosts (default: v2-alpha-tpuv5-lite for v5litepod, else tpu-ubuntu2204-base).
# SPOT=1           takes spot capacity.
# LOGS=FOLDER      where the output of each host is collected (default: NAME-logs).
# MOST_STARTS=100  how often it is started, at most.
# DRY_RUN=1        shows the commands and runs none of them.
#
# The run's folder and LLM_JAX_CACHE must be on a file system that all hosts share. The queued resource stays when the
# run has ended: the last line says how to delete it. The exit code is that of the run.
set -u

if [[ $# -lt 4 || $1 == -* || $2 == -* || $3 == -* ]]; then
  echo 'usage: launch/tpu_pod.sh NAME ZONE ACCELERATOR --config=FILE --workdir=FOLDER [flags of launch.train]' >&2
  exit 2
fi
name=$1 zone=$2 accelerator=$3
shift 3
if ! [[ $name =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]]; then
  echo "error: NAME = '$name': use lower-case letters, digits and -, a letter first" >&2
  exit 2
fi
repository=${REPOSITORY:-$(git -C "$(dirname "$0")" remote get-url origin 2>/dev/null)}
if [[ -z $repository ]]; then
  echo "error: REPOSITORY is not set, and this clone has no remote 'origin': name what the hosts are to clone" >&2
  exit 2
fi
case $accelerator in
  v5litepod-*) runtime=${RUNTIME:-v2-alpha-tpuv5-lite} ;;
  *) runtime=${RUNTIME:-tpu-ubuntu2204-base} ;;
esac
logs=${LOGS:-$name-logs}
pause=${PAUSE_SECONDS:-30}
queued=(gcloud compute tpus queued-resources)

do_or_show() {
  if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

state() { "${queued[@]}" describe "$name" --zone="$zone" --format='value(state.state)' 2>/dev/null; }

ask_for_slice() {
  do_or_show "${queued[@]}" create "$name" --node-id="$name" --zone="$zone" --accelerator-type="$accelerator" \
    --runtime-version="$runtime" ${SPOT:+--spot}
}

give_slice_back() { "${queued[@]}" delete "$name" --zone="$zone" --force --quiet; }

await_slice() {  # until it is there; asks for it where nobody has
  local now
  while true; do
    now=$(state)
    case $now in
      ACTIVE) return 0 ;;
      '') ask_for_slice || return 1 ;;
      FAILED | SUSPENDED) give_slice_back || return 1 ;;  # it is asked for again
    esac
    echo "$name is ${now:-asked for}" >&2
    sleep "$pause"
  done
}

on_hosts() {  # runs a command on one host or on all: on_hosts WORKER COMMAND [flags of gcloud]
  local worker=$1 command=$2
  shift 2
  do_or_show gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker="$worker" --command="$command" "$@"
}

setup="${SETUP:+$SETUP && }if [ ! -d llm_jax ]; then git clone -q $(printf %q "$repository") llm_jax; fi && cd llm_jax &&
 { [ -x .venv/bin/python ] || { python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[tpu]'; }; }"
# gcloud has an exit code of its own, so that of the run is left in a file of each host.
train="cd llm_jax; .venv/bin/python -m launch.train $(printf '%q ' "$@")--coordinator=auto; echo \$? > ~/llm_jax.exit"

if [[ -n ${DRY_RUN:-} ]]; then
  ask_for_slice
  on_hosts all "$setup"
  on_hosts all "$train" --output-directory="$logs"
  exit 0
fi

mkdir -p "$logs" || exit 1
status=1
for ((start = 1; start <= ${MOST_STARTS:-100}; start++)); do
  await_slice || exit 1
  status=lost
  if on_hosts all "$setup"; then
    on_hosts all "$train" --output-directory="$logs"
    status=$(on_hosts 0 'cat ~/llm_jax.exit; rm ~/llm_jax.exit' 2>/dev/null)
  elif [[ $(state) == ACTIVE ]]; then
    echo "error: the hosts could not be set up" >&2
    exit 1
  fi
  case $status in
    75 | 70 | '' | lost) echo "start $start ended with code ${status:-unknown} on $name, which is $(state): once more" >&2 ;;
    *) break ;;
  esac
  status=1
done
echo "ended with code $status; logs are in $logs. Delete the slice: ${queued[*]} delete $name --zone=$zone --force" >&2
exit "$status"
