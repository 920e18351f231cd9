"""`--config.FIELD=VALUE` on a command line, and what it does to the tree of an experiment.

`config_flags` of ml_collections is not used for the fields: it cannot set one that holds None or change the kind of an
optimizer, and it answers a typo with a traceback.
"""
import ast
import re
import warnings
from collections.abc import Sequence
from typing import Any

from launch.errors import Refused
from llm_jax.config.run import Run
from llm_jax.config.schema import KIND
from llm_jax.config.type_hints import dataclasses_of, hints, is_mapping, is_sequence, suggest

LITERALS = {'none': None, 'true': True, 'false': False, 'nan': float('nan'), 'inf': float('inf'), '-inf': -float('inf')}
OVERRIDE = re.compile(r'--?config\.([^=]*)(=(.*))?', re.DOTALL)
PATH = re.compile(r'\w+(\.\w+|\[\d+\])*')


class UnsetFields(dict[str, Any]):
  """The fields of a part that was None and is being set field by field; those that are not set have their defaults."""


def split_overrides(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
  """Separates `--config.FIELD=VALUE` (or `--config.FIELD VALUE`) from the other arguments."""
  overrides: list[tuple[str, str]] = []
  others: list[str] = []
  arguments = iter(argv)
  for argument in arguments:
    match = OVERRIDE.fullmatch(argument)
    if match is None:
      others.append(argument)
      continue
    field, has_value, value = match.groups()
    if not has_value:
      value = next(arguments, None)
    if value is None:
      raise Refused(f'{argument} has no value: use {argument}=VALUE')
    overrides.append((field, value))
  return overrides, others


def set_field(tree: dict[str, Any], path: str, text: str) -> None:
  """Sets one field of a tree to what a command line says.

  The schema checks the result; here only the way to the field must exist. Where `kind` changes, fields that the new
  kind does not have are dropped, so that one override is enough.
  """
  *parents, last = split_path(path)
  holder: Any = tree
  where = 'config'
  for key in parents:
    if _is_unset(holder, key):
      holder[key] = UnsetFields()
    holder, where = step_into(holder, key, where)
  value = parse(text, _current(holder, last, where))
  if last == KIND:
    drop_other_fields(holder, value)
  holder[last] = value


def split_path(path: str) -> list[str | int]:
  """`stages[0].steps` -> ['stages', 0, 'steps']."""
  if not PATH.fullmatch(path):
    raise Refused(f'--config.{path}: not a field: write it like --config.stages[0].learning_rate.peak')
  found = re.findall(r'\[(\d+)\]|(\w+)', path)
  return [int(index) if index else name for index, name in found]


def _current(holder: Any, key: str | int, where: str) -> Any:
  """What a field holds. One that the tree lacks may be set too: the schema knows whether there is such a one."""
  if is_mapping(holder) and isinstance(key, str):
    return holder.get(key)
  return step_into(holder, key, where)[0]


def _is_unset(holder: Any, key: str | int) -> bool:
  """Whether the part under `key` is None, or is one of those that a part which was None does not have yet."""
  if not is_mapping(holder) or not isinstance(key, str):
    return False
  if key in holder:
    return holder[key] is None
  return isinstance(holder, UnsetFields)


def drop_other_fields(holder: dict[str, Any], kind: Any) -> None:
  """Leaves only fields that the class called `kind` has."""
  cls = next((each for each in dataclasses_of(Run) if each.__name__ == kind), None)
  if cls is None:  # the schema will refuse it
    return
  for name in set(holder) - set(hints(cls)):
    del holder[name]


def step_into(holder: Any, key: str | int, where: str) -> tuple[Any, str]:
  """The value under `key` and its path, or an error that says what is there instead."""
  path = f'{where}[{key}]' if isinstance(key, int) else f'{where}.{key}'
  if isinstance(key, int) and is_sequence(holder):
    if key < len(holder):
      return holder[key], path
    raise Refused(f'{path}: {where} has {len(holder)} entries, counted from 0')
  if isinstance(key, str) and is_mapping(holder):
    if key in holder:
      return holder[key], path
    raise Refused(f'{path}: no such field; {suggest(key, holder)}')
  if is_sequence(holder):
    raise Refused(f'{path}: {where} is a tuple: use {where}[0] and so on')
  raise Refused(f'{path}: {where} = {holder!r} has no parts')


def parse(text: str, current: Any) -> Any:
  """A command line's text as a value: a Python literal, or else the text itself.

  current: what the field holds; where that is a string, only a quoted text is taken for a literal.
  """
  try:
    value = LITERALS[text.lower()] if text.lower() in LITERALS else _literal(text)
  except (SyntaxError, ValueError, TypeError, OverflowError, MemoryError, RecursionError):
    return text
  if isinstance(current, str) and not isinstance(value, str):
    return text
  return value


def _literal(text: str) -> Any:
  """A Python literal. Raises one of many errors for what is none, or is nested too deeply."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # such as of an escape that is none: the text is the user's
    return ast.literal_eval(text)
