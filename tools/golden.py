"""Golden curves: the losses of 20 steps of every family and objective, as they were when somebody last looked at them.

python -m tools.golden                    compares all with tests/golden; exit code 1 where one differs
python -m tools.golden NAME...            compares these, such as family_llama objective_DPO
python -m tools.golden --write [NAME...]  writes them: for a new family or objective, and after a change that is meant
                                          to change the numbers
"""
import argparse
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_DEFAULT_MATMUL_PRECISION', 'highest')

from tools.golden_cases import cases  # noqa: E402  jax reads the environment when it is imported
from tools.golden_data import write_data  # noqa: E402
from tools.training import QUICK_COMPILE, Record, Rows, Training, rows  # noqa: E402

FOLDER = pathlib.Path(__file__).parent.parent / 'tests' / 'golden'
OTHER_MACHINE = 1e-4  # relative; XLA orders and fuses sums by the instructions that a processor has
SAME_MACHINE = 1e-6


def records(name: str, folder: pathlib.Path, times: int = 1) -> list[Record | Rows]:
  """Trains a case so many times on the data in `folder`, or reads its data where it is one of data."""
  run = cases()[name](folder)
  stage = run.stages[-1]
  if name.startswith('data_'):
    return [rows(run, stage) for _ in range(times)]
  training = Training(run, stage, QUICK_COMPILE)
  return [training.record() for _ in range(times)]


def difference(found: Record | Rows, expected: Record | Rows, tolerance: float) -> str:
  """Where two records of the same case part and by how much, in one line; '' where they agree."""
  if isinstance(found, Rows) or isinstance(expected, Rows):
    return '' if found == expected else f'other rows: {found}, and was {expected}'
  if found.num_parameters != expected.num_parameters:
    return f'the model has {found.num_parameters:,} parameters, and had {expected.num_parameters:,}'
  if found.batches != expected.batches:
    return 'the batches hold other rows'
  if apart(found.initial_norm, expected.initial_norm) > tolerance:
    return f'the initial parameters have norm {found.initial_norm!r}, and had {expected.initial_norm!r}'
  if len(found.losses) != len(expected.losses):
    return f'there are {len(found.losses)} losses, and were {len(expected.losses)}'
  for step, (loss, before) in enumerate(zip(found.losses, expected.losses, strict=True), 1):
    # Written so that a loss that is not a number differs.
    if not apart(loss, before) <= tolerance:
      return f'the loss of step {step} is {loss!r}, and was {before!r}: {apart(loss, before):.1e} apart'
  if apart(found.final_norm, expected.final_norm) > tolerance:
    return f'the trained parameters have norm {found.final_norm!r}, and had {expected.final_norm!r}'
  return ''


def apart(a: float, b: float) -> float:
  """The relative difference."""
  return abs(a - b) / max(abs(b), 1e-12)


def read(name: str, folder: pathlib.Path = FOLDER) -> Record | Rows:
  """The golden record of a case. Raises FileNotFoundError with the command that writes it."""
  path = folder / f'{name}.json'
  if not path.exists():
    raise FileNotFoundError(f'{name} has no golden record yet: python -m tools.golden --write {name}')
  fields = json.loads(path.read_text(encoding='utf-8'))
  if name.startswith('data_'):
    return Rows(**fields)
  return Record(**(fields | {'losses': tuple(fields['losses'])}))


def write(name: str, found: Record | Rows, folder: pathlib.Path = FOLDER) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(dataclasses.asdict(found), indent=1)
  (folder / f'{name}.json').write_text(text + '\n', encoding='utf-8')


def describe(found: Record | Rows) -> str:
  if isinstance(found, Rows):
    return 'rows'
  return f'{found.losses[0]:.4f} -> {found.losses[-1]:.4f}'


def largest_difference(found: Record | Rows, expected: Record | Rows) -> str:
  if isinstance(found, Rows) or isinstance(expected, Rows):
    return ''
  return f', losses at most {max(map(apart, found.losses, expected.losses)):.1e} apart'


def main(arguments: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('names', nargs='*', metavar='NAME')
  parser.add_argument('--write', action='store_true')
  parser.add_argument('--folder', type=pathlib.Path, default=FOLDER)
  parser.add_argument('--tolerance', type=float, default=OTHER_MACHINE)
  options = parser.parse_args(arguments)
  unknown = [name for name in options.names if name not in cases()]
  if unknown:
    parser.error(f'no case {unknown[0]!r}: use one of {", ".join(cases())}')
  differ = 0
  with tempfile.TemporaryDirectory() as folder:
    os.environ['LLM_JAX_CACHE'] = f'{folder}/cache'
    write_data(pathlib.Path(folder))
    for name in options.names or cases():
      [found] = records(name, pathlib.Path(folder))
      if options.write:
        write(name, found, options.folder)
        print(f'{name}: {describe(found)}', flush=True)
        continue
      expected = read(name, options.folder)
      words = difference(found, expected, options.tolerance)
      differ += bool(words)
      print(f'{name}: {words or "same"}{largest_difference(found, expected)}', flush=True)
  return 1 if differ else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
