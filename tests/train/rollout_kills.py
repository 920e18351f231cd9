"""Kills runs that learn from their own answers at random moments of a rollout, and checks that they go on bitwise.

  python -m tests.train.rollout_kills --count=30 --folder=FOLDER [--seed=0]

FOLDER may hold the untouched run of an earlier call. Policy gradients, the same with adapters, and PPO take turns as
the stages of one run; see `kill_inside` for the moments.
"""
import argparse
import pathlib
import random
import signal
import sys

from llm_jax.tracking.metrics import read_metrics
from tests.train import kill_inside, runs

STAGES = ('texts', 'rewards', 'adapters', 'critic')
SECONDS_PER_START = 500
LATEST_CALL = {'learning': 8, 'the next batch': 8}  # of a process, that a kill may hit; of the others 4


def untouched(folder: pathlib.Path) -> pathlib.Path:
  """An uninterrupted run in the folder; it goes on where an earlier call was stopped."""
  finish(folder, folder / 'run')
  return folder / 'run'


def finish(folder: pathlib.Path, workdir: pathlib.Path) -> None:
  process = runs.start(folder / 'none', workdir, experiment=runs.tiny('rollout', folder / 'none'))
  output, _ = process.communicate(timeout=SECONDS_PER_START)
  assert process.returncode == 0, output


def kill_runs(folder: pathlib.Path, count: int, seed: int) -> list[str]:
  """Kills runs `count` times, each as often as it lives, and compares their ends with the untouched run: what is wrong.
  """
  rng = random.Random(seed)
  moments = [moment for _ in range(-(-count // len(kill_inside.MOMENTS))) for moment in kill_inside.MOMENTS][:count]
  rng.shuffle(moments)
  wrong = []
  while moments:
    workdir = folder / f'killed-{seed}-{len(moments)}'
    kill_one_run(folder, workdir, moments, rng)
    wrong += compare(workdir, folder / 'run')
  return wrong


def kill_one_run(folder: pathlib.Path, workdir: pathlib.Path, moments: list[str], rng: random.Random) -> None:
  """Starts a run again until it ends, and kills it in the moments to come, which are taken from the list."""
  experiment = runs.tiny('rollout', folder / 'none')
  while moments:
    call = rng.randint(1, LATEST_CALL.get(moments[-1], 4))
    arguments = [moments[-1], str(call), f'{rng.random():.3f}']
    process = runs.start(folder / 'none', workdir, experiment=experiment, module='tests.train.kill_inside',
                         arguments=arguments)
    output, _ = process.communicate(timeout=SECONDS_PER_START)
    if process.returncode == 0:  # it has ended before that call
      return
    assert process.returncode == -signal.SIGKILL, output
    moments.pop()
    steps = [(record['stage'], record['step']) for record in read_metrics(workdir) if 'step' in record]
    print('killed in', *arguments, 'after', steps[-1:], flush=True)
  finish(folder, workdir)


def compare(workdir: pathlib.Path, reference: pathlib.Path) -> list[str]:
  """What differs."""
  wrong = [] if runs.losses(workdir) == runs.losses(reference) else [f'{workdir}: other losses']
  return wrong + [f'{workdir}: another state of {stage}' for stage in STAGES
                  if runs.state_hash(workdir, stage) != runs.state_hash(reference, stage)]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--count', type=int, default=30, help='how many kills to make')
  parser.add_argument('--folder', type=pathlib.Path, required=True, help='where the runs are made')
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  args.folder.mkdir(parents=True, exist_ok=True)
  untouched(args.folder)
  wrong = kill_runs(args.folder, args.count, args.seed)
  print('\n'.join(wrong) or f'{args.count} kills, all ends bitwise equal')
  return int(bool(wrong))


if __name__ == '__main__':
  sys.exit(main())
