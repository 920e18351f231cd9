"""Which tasks lm-evaluation-harness has, and where their definitions lie.

Its own index parses 14,000 files of YAML; this one reads their names alone, which takes a second.
"""
import difflib
import functools
import pathlib
import re
from importlib.util import find_spec
from typing import NamedTuple

from llm_jax.config.errors import ConfigError

NAME = re.compile(rb'^"?(task|group)"?:[ \t]*["\']?([\w.+-]+)["\']?[ \t]*(?:#.*)?$', re.MULTILINE)
TAG = re.compile(rb'^tag:[ \t]*(?:["\']?([\w.+-]+)["\']?[ \t]*$|((?:\n[ \t]*-[ \t]*[\w.+-]+)+))', re.MULTILINE)


class Definition(NamedTuple):
  """One task.   unsafe: it runs what the model writes."""
  path: pathlib.Path
  unsafe: bool


class Index(NamedTuple):
  """Tasks by name, and the names of collections of them: groups and tags.   folder: that they are in."""
  tasks: dict[str, Definition]
  collections: frozenset[str]
  folder: pathlib.Path | None = None


def scan(folder: pathlib.Path) -> Index:
  """What the files of a folder and of all folders in it define."""
  tasks: dict[str, Definition] = {}
  collections: set[str] = set()
  for path in sorted(folder.rglob('*.yaml')):
    content = path.read_bytes()
    for kind, name in NAME.findall(content):
      if kind == b'group':
        collections.add(name.decode())
      else:
        tasks.setdefault(name.decode(), Definition(path, b'unsafe_code: true' in content.lower()))
    for one, many in TAG.findall(content):
      names = [one] if one else re.findall(rb'[\w.+-]{2,}', many)
      collections |= {name.decode() for name in names}
  return Index(tasks, frozenset(collections - tasks.keys()), folder)


@functools.cache
def official() -> Index:
  """Those that the installed harness brings."""
  spec = find_spec('lm_eval')
  if spec is None or spec.origin is None:
    raise ConfigError('--tasks', 'lm_eval', "is not installed: pip install 'llm_jax[eval]'")
  return scan(pathlib.Path(spec.origin).parent / 'tasks')


def find(name: str, own: Index) -> Definition | None:
  """The definition of a task, one's own before the harness's; None for a collection.

  own: tasks of one's own.

  Raises:
    ConfigError: there is none; names the nearest.
  """
  if name in own.tasks:
    return own.tasks[name]
  if name.endswith('.yaml') and pathlib.Path(name).is_file():
    content = pathlib.Path(name).read_bytes()
    return Definition(pathlib.Path(name), b'unsafe_code: true' in content.lower())
  if name in own.collections:
    return None
  index = official()
  if name in index.tasks:
    return index.tasks[name]
  if name in index.collections:
    return None
  near = difflib.get_close_matches(name, [*own.tasks, *own.collections, *index.tasks, *index.collections], n=3)
  hint = f'the nearest are {", ".join(near)}' if near else 'name one of lm_eval, or the .yaml file of one of your own'
  raise ConfigError('--tasks', name, f'no such task: {hint}')
