"""Trains two commits side by side and says where they part.

python -m tools.compare_commits OLD [NEW] [--config=experiments/family.py:llama] [--steps=20] [--config.FIELD=VALUE]

OLD, NEW: commits, or folders that hold the code; NEW is the folder that this runs in when none is named. Both are run
by this interpreter, one after the other, with the seed and the data of the configuration; a relative --config is each
one's own file. Commits before 0.2.0 cannot be compared.
Exit codes: 0 all the same within --tolerance; 1 they part; 2 one of them could not be run.
"""
import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LOG_PROGRAM = 'tools.step_log'
NAMES_SHOWN = 3  # names of parameters in one line


class CannotRun(Exception):
  """One of the two could not be run; `str()` says which and why."""


# ---------------------------------------------------------------------------------------------- running
@contextlib.contextmanager
def checked_out(name: str, folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """The code of a commit, in a work tree that is removed again; of a folder, that folder."""
  if os.path.isdir(name):
    yield pathlib.Path(name).resolve()
    return
  resolve = ['git', 'rev-parse', '--verify', '--quiet', f'{name}^{{commit}}']
  found = subprocess.run(resolve, capture_output=True, text=True)
  if found.returncode:
    raise CannotRun(f'{name}: neither a commit of this repository nor a folder')
  commit = found.stdout.strip()
  subprocess.run(['git', 'worktree', 'add', '--quiet', '--detach', str(folder), commit], check=True)
  try:
    yield folder
  finally:
    subprocess.run(['git', 'worktree', 'remove', '--force', str(folder)], check=True)


def run(name: str, code: pathlib.Path, folder: pathlib.Path, arguments: Sequence[str]) -> dict[str, Any]:
  """The step log of the code in a folder. What it tokenises is kept in `folder` alone."""
  if not (code / 'tools' / 'step_log.py').is_file():
    raise CannotRun(f'{name}: it has no {LOG_PROGRAM}; only commits from 0.2.0 on can be compared')
  out = folder / 'log.json'
  command = [sys.executable, '-m', LOG_PROGRAM, *arguments, f'--out={out}']
  environment = {**os.environ, 'PYTHONPATH': str(code), 'LLM_JAX_CACHE': str(folder / 'cache')}
  finished = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True)
  if finished.returncode:
    raise CannotRun(f'{name}: {" ".join(command[1:])} failed:\n{finished.stderr[-2_000:]}')
  return json.loads(out.read_text(encoding='utf-8'))


# ---------------------------------------------------------------------------------------------- comparing
def differences(old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float) -> list[str]:
  """Where two step logs part, a line each, in the order in which one causes the next; [] where they agree."""
  if old['format'] != new['format']:
    return [f'the logs have formats {old["format"]} and {new["format"]}: compare two commits nearer to each other']
  lines = [
    *different_names(old['parameters'], new['parameters']),
    *different_parameters('initial parameters', old['parameters'], new['parameters'], tolerance),
    *different_batches(old['steps'], new['steps']),
    *different_parameters('gradients of step 1', old['gradients'], new['gradients'], tolerance),
    *different_losses(old['steps'], new['steps'], tolerance),
  ]
  for number, (before, after) in enumerate(zip(old['steps'], new['steps'], strict=False), 1):
    what = f'parameters after step {number}'
    found = different_parameters(what, before['parameters'], after['parameters'], tolerance)
    if found:
      return [*lines, *found]
  return lines


def different_names(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  gone = [name for name in old if name not in new]
  added = [name for name in new if name not in old]
  if not gone and not added:
    return []
  return [f'parameters: only OLD has {shortened(gone)}; only NEW has {shortened(added)}']


def different_parameters(what: str, old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float) -> list[str]:
  """A line that names the first one that differs, of those that both have."""
  common = [name for name in old if name in new]
  parted = {name: distance(old[name], new[name]) for name in common if not distance(old[name], new[name]) <= tolerance}
  if not parted:
    return []
  first = next(iter(parted))
  return [f'{what}: {first} is the first that differs, by {parted[first]:.1e}; '
          f'{len(parted)} of {len(common)} differ, by up to {max(parted.values()):.1e}']


def distance(old: Sequence[float], new: Sequence[float]) -> float:
  """Of two summaries, (norm, product with a wave), relative to the norm."""
  return max(abs(a - b) for a, b in zip(old, new, strict=True)) / max(abs(old[0]), 1e-30)


def different_batches(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[str]:
  for number, (before, after) in enumerate(zip(old, new, strict=False), 1):
    if before['batch'] != after['batch']:
      return [f'data: the batch of step {number} is the first that differs']
  return []


def different_losses(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], tolerance: float) -> list[str]:
  if len(old) != len(new):
    return [f'steps: {len(old)} and {len(new)}']
  for number, (before, after) in enumerate(zip(old, new, strict=True), 1):
    apart = relative(before['loss'], after['loss'])
    if not apart <= tolerance:  # so that a loss that is not a number differs
      return [f'losses part at step {number}: {before["loss"]!r} and {after["loss"]!r}, {apart:.1e} apart; '
              f'at most {largest_apart(old, new):.1e} in {len(old)} steps']
  return []


def largest_apart(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> float:
  return max(relative(before['loss'], after['loss']) for before, after in zip(old, new, strict=True))


def relative(old: float, new: float) -> float:
  return abs(old - new) / max(abs(old), 1e-30)


def shortened(names: Sequence[str]) -> str:
  shown = ', '.join(names[:NAMES_SHOWN]) or 'none'
  return shown if len(names) <= NAMES_SHOWN else f'{shown} and {len(names) - NAMES_SHOWN} more'


def step_times(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
  """The medians and their ratio. Each ran alone, so that a machine that is busy with other things is what this says."""
  before, after = (statistics.median(step['seconds'] for step in log['steps']) for log in (old, new))
  return f'median step: {before * 1e3:.2f} ms and {after * 1e3:.2f} ms, NEW takes {after / before:.3f} times as long'


# ---------------------------------------------------------------------------------------------- the command
def main(arguments: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                   allow_abbrev=False)
  parser.add_argument('old', metavar='OLD')
  parser.add_argument('new', metavar='NEW', nargs='?', default='.')
  parser.add_argument('--config', default='experiments/family.py:llama')
  parser.add_argument('--stage')
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument('--tolerance', type=float, default=1e-6, help='relative; the default is %(default)s')
  options, rest = parser.parse_known_args(arguments)
  unknown = [argument for argument in rest if not argument.startswith('--config.')]
  if unknown:
    parser.error(f'unknown argument {unknown[0]}')
  passed_on = [f'--config={options.config}', f'--steps={options.steps}', *rest]
  if options.stage:
    passed_on.append(f'--stage={options.stage}')
  logs = []
  try:
    with tempfile.TemporaryDirectory() as temporary:
      for place, name in (('old', options.old), ('new', options.new)):
        folder = pathlib.Path(temporary) / place
        folder.mkdir()
        with checked_out(name, folder / 'code') as code:
          logs.append(run(name, code, folder, passed_on))
  except CannotRun as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  old, new = logs
  lines = differences(old, new, options.tolerance)
  agreed = f'the same: {len(old["steps"])} losses, at most {largest_apart(old["steps"], new["steps"]):.1e} apart'
  print('\n'.join(lines or [agreed]))
  print(step_times(old, new))
  return 1 if lines else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
