"""Trains: runs or resumes the stages of an experiment.

  python -m launch.train --config=experiments/quickstart.py --workdir=runs/quickstart

Exit codes: 0 done; 2 wrong input; 75 stopped by SIGTERM or Ctrl-C with everything saved: the same command
goes on; 70 a process stalled; 1 anything else.
"""
import pathlib
import sys

from launch import runtime
from launch.errors import refuse
from launch.flags import parse_train
from llm_jax.config.errors import ConfigError


def main(argv: list[str]) -> int:
  flags = parse_train(argv, __doc__ or '')
  runtime.prepare()  # jax starts here, after the command line has been checked
  from llm_jax.runtime import joining
  from llm_jax.runtime.errors import CheckpointError
  from llm_jax.runtime.preemption import EXIT_PREEMPTED, Preempted
  from llm_jax.train.hooks import Diverged
  from llm_jax.train.run import train
  try:
    joining.join(flags.coordinator, flags.num_processes, flags.process_id)
    train(flags.run, flags.workdir, flags.stage, at_end=report, from_step=flags.from_step)
  except ConfigError as error:
    refuse(str(error))
  except Preempted as stopped:
    print(f'stopped on request, {stopped}: the same command goes on from there', flush=True)
    return EXIT_PREEMPTED
  except (CheckpointError, Diverged) as error:
    print(f'error: {error}', file=sys.stderr, flush=True)
    return 1
  finally:
    runtime.end()
  return 0


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
  runtime.start()  # first: it may start the program again, with an allocator that suits XLA
  return main(sys.argv)


if __name__ == '__main__':
  sys.exit(cli())
