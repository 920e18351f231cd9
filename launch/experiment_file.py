"""From `FILE.py:argument` and `--config.FIELD=VALUE` to a checked `Run`.

`config_flags` of ml_collections is not used for the fields: it cannot set one that holds None or change the kind of an
optimizer, and it answers a typo with a traceback.
"""
import ast
import contextlib
import dataclasses
import glob
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from llm_jax.config import experiment, presets, schema
from llm_jax.config.errors import ConfigError
from llm_jax.config.model import architecture
from llm_jax.config.run import Run
from llm_jax.config.stage_init import HuggingFace

LITERALS = {'none': None, 'true': True, 'false': False, 'nan': float('nan'), 'inf': float('inf'), '-inf': -float('inf')}


class Refused(Exception):
  """Wrong input that is no field of the configuration; `str()` is the one line to print."""


def load_run(config: str | None, overrides: Sequence[tuple[str, str]] = ()) -> Run:
  """The experiment `FILE.py[:argument]` with its overrides, checked.

  Args:
    config: the file, and after a colon the argument of its `get_config`.
    overrides: pairs such as ('stages[0].steps', '10').

  Raises:
    Refused: no such file, or its code fails.
    ConfigError: a field is unknown or wrong.
  """
  if not config:
    raise Refused('--config is missing: name an experiment, such as --config=experiments/quickstart.py')
  tree = schema.plain(call_get_config(config))
  if not isinstance(tree, dict):
    raise Refused(f'{config}: get_config() returned {type(tree).__name__}: return experiment(...)')
  for path, text in overrides:
    set_field(tree, path, text)
  return schema.from_json(tree)


def call_get_config(config: str) -> Any:
  """Runs the file's `get_config`, turning whatever goes wrong into one line with file and line number."""
  path, colon, argument = config.partition(':')
  if not os.path.isfile(path):
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    known = [os.path.join(folder, name) for name in sorted(glob.glob('*.py', root_dir=folder or '.')) if name[0] != '_']
    if os.path.isdir(path):
      raise Refused(f'--config={path}: a folder: name one Python file' + (f', such as {known[0]}' if known else ''))
    raise Refused(f'--config={path}: no such file' + (f'; {schema.suggest(path, known)}' if known else ''))
  try:
    spec = importlib.util.spec_from_file_location('experiment_file', path)
    if spec is None:
      raise Refused(f'--config={path}: name a Python file, such as experiments/quickstart.py')
    module = importlib.util.module_from_spec(spec)
    with neighbours(path):
      spec.loader.exec_module(module)
      if not callable(getattr(module, 'get_config', None)):
        raise Refused(f'{path}: it has no get_config(): define one that returns experiment(...)')
      arguments = [argument] if colon else []
      check_arguments(path, inspect.signature(module.get_config), arguments)
      return module.get_config(*arguments)
  except Refused:
    raise
  except SyntaxError as error:
    where = f'{error.filename}:{error.lineno}' if error.filename else path  # a NUL byte has no place
    raise Refused(f'{where}: SyntaxError: {error.msg}') from None
  except Exception as error:  # Whatever a user's file raises is the user's to correct: one line that says where.
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(path)]
    raise Refused(f'{path}{f":{lines[-1]}" if lines else ""}: {explain(error)}') from None


def explain(error: Exception) -> str:
  """What an experiment file raised, in one line. Of a part that was made with a value of the wrong type, or with a name
  that it does not have, Python names no field, or nothing to change."""
  if isinstance(error, ConfigError):
    return str(error)
  for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
    part = frame.f_locals.get('self')
    if frame.f_code.co_name == '__post_init__' and dataclasses.is_dataclass(part):
      try:
        schema.read(type(part), schema.to_json(part), type(part).__name__)
      except ConfigError as found:
        return str(found)
      except Exception:  # its own mistake then
        break
  if found := re.match(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", str(error)):
    name, argument = found.groups()
    for made in (getattr(module, name, None) for module in (experiment, presets, architecture)):
      if made:
        known = inspect.signature(made).parameters
        return f'{name}({argument}=...): no such argument; {schema.suggest(argument, known)}'
  return f'{type(error).__name__}: {error}'


@contextlib.contextmanager
def neighbours(path: str) -> Iterator[None]:
  """While it lasts, `import name` also finds the files beside `path`: an experiment may change one thing of another."""
  folder = os.path.dirname(os.path.abspath(path))
  sys.path.append(folder)
  try:
    yield
  finally:
    sys.path.remove(folder)


def check_arguments(path: str, signature: inspect.Signature, arguments: list[str]) -> None:
  try:
    signature.bind(*arguments)
  except TypeError:
    if arguments:
      raise Refused(f'--config={path}:{arguments[0]}: its get_config() takes no argument: '
                    f'use --config={path}') from None
    names = ', '.join(signature.parameters)
    raise Refused(f'--config={path}: it needs its argument ({names}): '
                  f'use --config={path}:{names.upper()}') from None


# ---------------------------------------------------------------------------------------------- overrides
def split_overrides(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
  """Separates `--config.FIELD=VALUE` (or `--config.FIELD VALUE`) from the other arguments."""
  overrides, rest, items = [], [], iter(argv)
  for item in items:
    if not (match := re.fullmatch(r'--?config\.([^=]*)(=(.*))?', item, re.DOTALL)):
      rest.append(item)
      continue
    value = match[3] if match[2] else next(items, None)
    if value is None:
      raise Refused(f'{item} has no value: use {item}=VALUE')
    overrides.append((match[1], value))
  return overrides, rest


class FromNone(dict):
  """What becomes of a None whose fields are set one by one; those that are not have their defaults."""


def set_field(tree: dict[str, Any], path: str, text: str) -> None:
  """Sets one field of a tree. The schema checks the result; here only the way to the field must exist.

  Where `kind` changes, fields that the new kind does not have are dropped, so that one override is enough.
  """
  if not re.fullmatch(r'\w+(\.\w+|\[\d+\])*', path):
    raise Refused(f'--config.{path}: not a field: write it like --config.stages[0].learning_rate.peak')
  keys = [int(index) if index else name for name, index in re.findall(r'(\w+)(?!\])|\[(\d+)\]', path)]
  holder, where = tree, 'config'
  for key in keys[:-1]:
    if isinstance(holder, dict) and (holder.get(key, '') is None or isinstance(holder, FromNone) and key not in holder):
      holder[key] = FromNone()
    holder, where = step_into(holder, key, where)
  key = keys[-1]
  if isinstance(holder, dict) and isinstance(key, str):
    value = parse(text, holder.get(key))
    kinds = {cls.__name__: cls for cls in schema.dataclasses_of(Run)}
    if key == schema.KIND and value in kinds:
      for name in set(holder) - set(schema.hints(kinds[value])):
        del holder[name]
    holder[key] = value
  else:
    holder[key] = parse(text, step_into(holder, key, where)[0])


def step_into(holder: Any, key: str | int, where: str) -> tuple[Any, str]:
  """The value under `key` and its path, or an error that says what is there instead."""
  if isinstance(key, int) and isinstance(holder, list):
    if key < len(holder):
      return holder[key], f'{where}[{key}]'
    raise Refused(f'{where}[{key}]: {where} has {len(holder)} entries, counted from 0')
  if isinstance(key, str) and isinstance(holder, dict):
    if key in holder:
      return holder[key], f'{where}.{key}'
    raise Refused(f'{where}.{key}: no such field; {schema.suggest(key, holder)}')
  if isinstance(holder, list):
    raise Refused(f'{where}.{key}: {where} is a tuple: use {where}[0] and so on')
  raise Refused(f'{where}{f"[{key}]" if isinstance(key, int) else f".{key}"}: {where} = {holder!r} has no parts')


def parse(text: str, current: Any) -> Any:
  """A command line's text as a value: a Python literal, or a string as it stands, which a string's field prefers."""
  try:
    value = LITERALS[text.lower()] if text.lower() in LITERALS else ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text
  return text if isinstance(current, str) and not isinstance(value, str) else value


# ---------------------------------------------------------------------------------------------- files it names
def check_files(run: Run, config: str) -> None:
  """Refuses a run whose sources or tokenizer name files that do not exist, before anything starts."""
  file = config.partition(':')[0]
  for path, value in walk(run, 'config'):
    if path.endswith('.path') and not os.path.exists(value) and not glob.glob(value, recursive=True):
      raise ConfigError(path, value, f'no such file: name one by --config={file}:FILE or --{path}=FILE')
  for i, stage in enumerate(run.stages):
    if isinstance(stage.init, HuggingFace) and not os.path.isdir(stage.init.folder):
      raise ConfigError(f'config.stages[{i}].init.folder', stage.init.folder,
                        'no such folder: name one with config.json and weights')


def walk(value: Any, path: str):
  """Yields (path, value) for every plain value of a dataclass."""
  if dataclasses.is_dataclass(value):
    for field in dataclasses.fields(value):
      yield from walk(getattr(value, field.name), f'{path}.{field.name}')
  elif isinstance(value, tuple):
    for i, item in enumerate(value):
      yield from walk(item, f'{path}[{i}]')
  else:
    yield path, value


def settings(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
  """Yields (path, value) for every plain value, and every list of such, of a tree that `schema.to_json` made: what
  `set_field` can set."""
  if isinstance(tree, dict):
    for name, value in tree.items():
      yield from settings(value, f'{path}.{name}')
  elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
    for i, item in enumerate(tree):
      yield from settings(item, f'{path}[{i}]')
  else:
    yield path, tree
