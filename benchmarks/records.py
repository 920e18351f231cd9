"""Result files. One is written for every measurement and none is ever overwritten:

  results/<benchmark>/<date>-<commit>-<machine>.json

Of a tree with changes that are not committed the commit ends in '+'. A second measurement of the same day, commit and
machine has '-2' behind its name.
"""
import dataclasses
import datetime
import json
import pathlib
import subprocess
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'


@dataclasses.dataclass(frozen=True)
class Record:
  """One result file. time: ISO 8601, of the measurement. commit: short. content: the whole file."""
  benchmark: str
  time: datetime.datetime
  commit: str
  machine: str
  content: dict[str, Any]


def write_results(benchmark: str, results: dict[str, Any], output: pathlib.Path | None = None) -> pathlib.Path:
  """Adds the time and the commit to `results`, which hold `machine()` under 'machine', and writes them.

  output: the file to write, new as well; None: the one that the docstring above names, under RESULTS.

  Returns:
    The path.

  Raises:
    FileExistsError: `output` is there already.
  """
  now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
  stamped = {'machine': results['machine'], 'time': now.isoformat(), 'commit': commit()}
  stamped |= results
  path = output or new_path(benchmark, stamped)
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'x', encoding='utf-8') as file:
    file.write(json.dumps(stamped, indent=1) + '\n')
  print(path)
  return path


def new_path(benchmark: str, stamped: dict[str, Any]) -> pathlib.Path:
  """The file of a result that has its time and commit; no file has this name yet."""
  date = stamped['time'].partition('T')[0]
  name = f"{date}-{stamped['commit']}-{stamped['machine']['name']}"
  path = RESULTS / benchmark / f'{name}.json'
  number = 2
  while path.exists():
    path = path.with_name(f'{name}-{number}.json')
    number += 1
  return path


def commit() -> str:
  """The commit of this clone, '+' behind it where files were changed since; 'unknown' outside a clone."""
  try:
    head = git('rev-parse', '--short=7', 'HEAD')
    changed = git('status', '--porcelain', '--untracked-files=no')
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'
  return f'{head}+' if changed else head


def git(*words: str) -> str:
  done = subprocess.run(['git', '-C', str(ROOT), *words], capture_output=True, text=True, check=True)
  return done.stdout.strip()


def read_records(folder: pathlib.Path = RESULTS) -> list[Record]:
  """All result files below `folder`, by benchmark, then by time."""
  records = []
  # Of one second, a file with a longer name, as '-2' makes it, is the later one.
  for path in sorted(folder.glob('*/*.json'), key=lambda path: (len(path.name), path.name)):
    content = json.loads(path.read_text(encoding='utf-8'))
    time = datetime.datetime.fromisoformat(content['time'])
    records.append(Record(path.parent.name, time, content['commit'], content['machine']['name'], content))
  return sorted(records, key=lambda record: (record.benchmark, record.time, record.machine))
