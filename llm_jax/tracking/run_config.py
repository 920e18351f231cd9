"""`config.json` of a run's folder: what the run is, and the version of llm_jax that wrote it."""
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_jax.config import schema
from llm_jax.config.errors import ConfigError
from llm_jax.config.fields import Change, Field, fields_of
from llm_jax.config.run import Run
from llm_jax.config.type_hints import is_mapping, is_sequence
from llm_jax.config.version import __version__
from llm_jax.runtime.files import write_atomic

NAME = 'config.json'
VERSION = 'version'
OLDEST = (0, 2)  # the first version whose fields this one has
UNNAMED = '0.1'  # wrote no version
ABSENT = '(absent)'


def write_config(workdir: Path, run: Run) -> None:
  tree = {VERSION: __version__, **schema.to_json(run)}
  write_atomic(workdir / NAME, json.dumps(tree, indent=2) + '\n')


def read_config(workdir: Path, flag: str = 'workdir') -> Run:
  """The run of a folder.

  Args:
    flag: what named the folder, for errors.

  Raises:
    ConfigError: there is none, it is damaged, or another version of llm_jax wrote it.
  """
  path = workdir / NAME
  if not path.is_file():
    raise ConfigError(flag, str(workdir), f'there is no {NAME}: name a folder that launch.train has written to')
  try:
    tree = json.loads(path.read_text(encoding='utf-8'))
    if not is_mapping(tree):
      raise ValueError('not an object')
    check_version(tree, path, flag, workdir)
    return parse_config(tree)
  except ConfigError as error:
    if error.field == flag:
      raise
    raise ConfigError(flag, str(workdir), f'{path} is damaged ({error}): restore that file, or name another '
                      'folder') from error
  except ValueError as error:
    raise ConfigError(flag, str(workdir), f'{path} is damaged ({error}): restore that file, or name another '
                      'folder') from error


def parse_config(tree: Mapping[str, Any]) -> Run:
  """The run that an object of `config.json` states; errors as in `schema.from_json`."""
  return schema.from_json({name: value for name, value in tree.items() if name != VERSION})


def check_version(tree: Mapping[str, Any], path: Path, flag: str, workdir: Path) -> None:
  """Refuses what another version wrote: its fields have other names, and an error about one of them would not help."""
  version = str(tree.get(VERSION, UNNAMED))
  numbers = tuple(int(number) for number in version.split('.')[:2])
  newest = tuple(int(number) for number in __version__.split('.')[:2])
  if not OLDEST <= numbers <= newest:
    raise ConfigError(flag, str(workdir), f'{path} was written by llm_jax {version}, whose configuration this version, '
                      f'{__version__}, does not read: go on with llm_jax {version}, or name another folder')


# ---------------------------------------------------------------------------------------------- changes
def check_unchanged(old: Run, new: Run, workdir: Path) -> None:
  """Raises ConfigError for the first field that differs and that a resumed run must not change.

  Stages may be appended.
  """
  for change in changes_between(old, new):
    because = f' and {change.reason}' if change.reason else ''
    way_back = ', go back to an earlier step with the new one (--from_step=N)' if change.in_branch else ''
    raise ConfigError(change.path, change.new, f'{workdir} was started with {change.old!r}{because}: set it back'
                      f'{way_back}, or name another workdir')


@dataclasses.dataclass(frozen=True)
class UnsafeChange:
  """path: such as `config.seed`.   reason: why it matters in this run, where it does not in all; else empty.
  in_branch: whether a run that goes back to an earlier step may make it.
  """
  path: str
  old: Any
  new: Any
  reason: str
  in_branch: bool = False


def changes_between(old: Run, new: Run) -> Iterator[UnsafeChange]:
  """What a resumed run must not change. Stages may be appended."""
  known = dataclasses.replace(new, stages=new.stages[:len(old.stages)])
  return unsafe_changes(old, old, known, 'config')


def unsafe_changes(run: Run, old: Any, new: Any, path: str, reason: str = '', in_branch: bool = False,
                   ) -> Iterator[UnsafeChange]:
  """Everything below `path` that differs and is not safe to change.

  Args:
    run: the one that began.
    old, new: the same part of the one that began and of the one that goes on.
  """
  if dataclasses.is_dataclass(old) and type(old) is type(new):
    for name, field in fields_of(type(old)).items():
      change = Change(run, old, getattr(old, name), getattr(new, name))
      if change.old != change.new and not is_safe(field, change):
        because = field.safe.reason if field.safe else reason
        yield from unsafe_changes(run, change.old, change.new, f'{path}.{name}', because,
                                  in_branch or field.in_branch)
  elif is_sequence(old) and is_sequence(new):
    for i in range(max(len(old), len(new))):
      before = old[i] if i < len(old) else ABSENT
      after = new[i] if i < len(new) else ABSENT
      yield from unsafe_changes(run, before, after, f'{path}[{i}]', reason, in_branch)
  elif old != new:
    yield UnsafeChange(path, old, new, reason, in_branch)


def is_safe(field: Field, change: Change) -> bool:
  """Whether a resumed run may make this change."""
  return field.safe is not None and not field.safe.unless(change)
