"""Trains: runs or resumes the stages of an experiment.

  python -m launch.train --config=experiments/quickstart.py --workdir=runs/quickstart

Exit codes: 0 done; 2 wrong input; 75 stopped by SIGTERM, Ctrl-C or a closed terminal with everything saved: the same
command goes on; 70 a process stalled, or another one of the run was lost: the same command goes on from the newest
checkpoint; 1 anything else.
"""
import os
import pathlib
import sys
import threading
from typing import TYPE_CHECKING

from launch import runtime

if TYPE_CHECKING:
  from launch.flags import TrainFlags
  from llm_jax.runtime.guard import Guard
  from llm_jax.runtime.requests import Requests

SHOW_SECONDS = 5  # that a request to stop grants the report


def main(argv: list[str], requests: 'Requests | None' = None) -> int:
  """Trains, and returns the exit code.   requests: what hears the signals; None: the main thread does, in a program
  that is not to end with the run."""
  from launch.errors import refuse
  from launch.flags import parse_train
  from llm_jax.config.errors import ConfigError
  flags = parse_train(argv, __doc__ or '')
  guard = make_guard(flags, requests)
  runtime.prepare(flags.cpu_devices)  # jax starts here, after the command line has been checked
  from llm_jax.runtime import joining
  from llm_jax.runtime.buckets import BucketError
  from llm_jax.runtime.errors import CheckpointError, FileError, RewardError, is_out_of_memory, one_line
  from llm_jax.runtime.preemption import EXIT_PREEMPTED, Preempted
  from llm_jax.tracking.terminal import say
  from llm_jax.train.hooks import Diverged
  from llm_jax.train.out_of_memory import OutOfMemory
  from llm_jax.train.run import train
  try:
    joining.join(flags.coordinator, flags.num_processes, flags.process_id, guard.connect)
    train(flags.run, flags.workdir, flags.stage, at_end=report, from_step=flags.from_step, guard=guard,
          profile=flags.profile)
    guard.close()
    return 0
  except Preempted as stopped:
    say(f'stopped on request, {stopped}: the same command goes on from there')
    if requests is not None:
      guard.leave(EXIT_PREEMPTED)
    guard.close(EXIT_PREEMPTED)
    return EXIT_PREEMPTED
  except ConfigError as error:
    guard.close(2, f'error: {error}')
    refuse(str(error))
  except (BucketError, CheckpointError, Diverged, FileError, OutOfMemory, RewardError) as error:
    guard.await_verdict()
    print(f'error: {error}', file=sys.stderr, flush=True)
    guard.close(1, one_line(error))
    return 1
  except Exception as error:
    guard.await_verdict()
    if is_out_of_memory(error):
      print(f'error: out of memory: {one_line(error)}', file=sys.stderr, flush=True)
    guard.close(1, f'{type(error).__name__}: {one_line(error)}')
    if is_out_of_memory(error):
      return 1
    raise
  finally:
    if requests is not None:
      requests.end()


def make_guard(flags: 'TrainFlags', requests: 'Requests | None') -> 'Guard':
  """The watchdog starts here, and requests to stop are answered by the run."""
  from llm_jax.runtime.guard import Guard
  from llm_jax.runtime.preemption import EXIT_PREEMPTED, SAVED, Preemption
  from llm_jax.runtime.watchdog import Watchdog
  from llm_jax.tracking.terminal import say

  def leave() -> None:
    # Another thread may hold the lock of a file whose reader sleeps, and the report may wait for one that computes.
    showing = threading.Thread(target=show_end, daemon=True)
    showing.start()
    showing.join(SHOW_SECONDS)
    guard.leave(EXIT_PREEMPTED)

  def show_end() -> None:
    say(f'stopped on request, {SAVED}: the same command goes on from there')
    is_primary = guard.peers is None or guard.peers.rank == 0
    if is_primary and (flags.workdir / 'metrics.jsonl').exists():
      report(flags.workdir)

  rank = flags.process_id or int(os.environ.get('LLM_JAX_PROCESS_ID') or 0)
  guard = Guard(Preemption(None if requests is None else leave), Watchdog(flags.run.stall_seconds, rank))
  if requests is not None:
    requests.answer = guard.preemption.request
  return guard


def report(workdir: pathlib.Path) -> None:
  """Writes the run's report. A disk that is full must not hide what else went wrong."""
  from llm_jax.report.page import write_report
  from llm_jax.tracking.terminal import say
  try:
    say(f'report: {write_report(workdir)}')
  except Exception as error:
    print(f'warning: no report was written: {error}', file=sys.stderr, flush=True)


def cli() -> int:
  """The program `llm-jax-train`."""
  requests = runtime.start()  # first: it may start the program again, with an allocator that suits XLA
  return main(sys.argv, requests)


if __name__ == '__main__':
  sys.exit(cli())
