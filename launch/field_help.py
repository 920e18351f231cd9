"""What `--help` prints of an experiment: every field as it can be set, with one line of help and its unit."""
import dataclasses
import textwrap
from collections.abc import Iterator
from typing import Any

from launch.overrides import parse
from llm_jax.config.fields import Field, fields_of
from llm_jax.config.run import Run
from llm_jax.config.schema import KIND
from llm_jax.config.type_hints import hints, is_sequence, item_type, variants

WIDTH = 100  # columns of the terminal
HELP_COLUMN = 50  # where the help begins; a longer setting has its help below


@dataclasses.dataclass(frozen=True)
class Setting:
  """Something that a command line can set.

  path: such as `config.seed`.
  value: as a command line writes it.
  kinds: names that `value` may be, where the field is a choice of types.
  """
  path: str
  value: str
  help: str
  unit: str = ''
  kinds: tuple[str, ...] = ()

  @property
  def argument(self) -> str:
    return f'--{self.path}={self.value}'


# ---------------------------------------------------------------------------------------------- what can be set
def settings_of(run: Run) -> Iterator[Setting]:
  """Every setting of a run, in the order of its fields."""
  yield from _of_fields(run, 'config')


def _of_fields(part: object, path: str) -> Iterator[Setting]:
  cls = type(part)
  for name, field in fields_of(cls).items():
    yield from _of_value(getattr(part, name), hints(cls)[name], f'{path}.{name}', field)


def _of_value(value: Any, kind: Any, path: str, field: Field) -> Iterator[Setting]:
  """The settings of one field, or of one item of it. kind: its declared type."""
  if dataclasses.is_dataclass(value):
    kinds = tuple(cls.__name__ for cls in variants(kind))
    if len(kinds) > 1:
      yield Setting(f'{path}.{KIND}', type(value).__name__, field.help, kinds=kinds)
    yield from _of_fields(value, path)
  elif is_sequence(value) and any(dataclasses.is_dataclass(item) for item in value):
    for i, item in enumerate(value):
      yield from _of_value(item, item_type(kind), f'{path}[{i}]', field)
  else:
    yield Setting(path, as_argument(value), field.help, field.unit)


def as_argument(value: Any) -> str:
  """A plain value as a command line writes it: a string without quotes wherever it is read back as itself."""
  if not isinstance(value, str):
    return repr(value)
  is_read_back = parse(value, value) == value
  is_one_word = value.isprintable() and value == value.strip()
  return value if is_read_back and is_one_word else repr(value)


# ---------------------------------------------------------------------------------------------- how it is printed
def format_fields(run: Run) -> str:
  """All of a run's settings, an empty line before each stage. Kinds to choose from are listed once."""
  listed: set[tuple[str, ...]] = set()
  blocks: list[str] = []
  part = ''
  for setting in settings_of(run):
    previous = part
    part = _stage_of(setting.path)
    if part != previous:
      blocks.append('')
    blocks.append(format_setting(setting, with_kinds=setting.kinds not in listed))
    listed.add(setting.kinds)
  return '\n'.join(blocks)


def _stage_of(path: str) -> str:
  """`config.stages[0]` of everything in the first stage; empty for what is in none."""
  return path.partition(']')[0] if path.startswith('config.stages[') else ''


def format_setting(setting: Setting, with_kinds: bool = True) -> str:
  """`  --config.seed=0      help`; the help below where there is no room beside it."""
  words = setting.help
  if setting.unit:
    words += f' [{setting.unit}]'
  if setting.kinds and with_kinds:
    words += f': {", ".join(setting.kinds)}'
  first = f'  {setting.argument}'
  lines = textwrap.wrap(words, WIDTH - HELP_COLUMN)
  if lines and len(first) < HELP_COLUMN - 1:
    first = first.ljust(HELP_COLUMN) + lines.pop(0)
  return '\n'.join([first, *(' ' * HELP_COLUMN + line for line in lines)])
