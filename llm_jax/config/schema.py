"""The one door between trees (ConfigDict, JSON) and the frozen dataclasses of a run.

A tree is nested mappings and sequences of plain values. A dataclass is a mapping of its fields; where a field's type
is a union of dataclasses, the mapping also carries the class's name under `kind`. Everything that enters is checked:
every error is a `ConfigError` that names the field from the root, the value and what to change.
"""
import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

from llm_jax.config.errors import ConfigError
from llm_jax.config.run import Run

KIND = 'kind'


# ---------------------------------------------------------------------------------------------- the four ways through
def to_json(run: Any) -> dict[str, Any]:
  """A run as dicts, lists and plain values, ready for `json.dump`; `from_json` gives back an equal run."""
  return _tree(run, type(run))


def from_json(tree: Any) -> Run:
  """A tree, such as `json.load` returns, as a checked `Run`.

  Raises:
    ConfigError: an unknown field or kind, a missing field, a wrong type, a number that is not finite, or whatever the
      dataclasses themselves refuse.
  """
  return read(Run, tree, 'config')


def to_config_dict(run: Run):
  """A run as an `ml_collections.ConfigDict`, every field present. Stages and the like are tuples: they keep order."""
  import ml_collections  # Here because `config/` starts in milliseconds and needs nothing.

  def convert(tree):
    if isinstance(tree, dict):
      return ml_collections.ConfigDict({key: convert(value) for key, value in tree.items()})
    return tuple(convert(value) for value in tree) if isinstance(tree, list) else tree

  return convert(to_json(run))


def from_config_dict(config: Any) -> Run:
  """A ConfigDict (or plain dict) as a checked `Run`; errors as in `from_json`."""
  return from_json(plain(config))


def plain(tree: Any) -> Any:
  """A copy with mappings (ConfigDict too, references resolved) as dicts and sequences as lists."""
  if hasattr(tree, 'items'):
    return {key: plain(value) for key, value in tree.items()}
  return [plain(value) for value in tree] if isinstance(tree, list | tuple) else tree


def _tree(value: Any, kind: Any) -> Any:
  """`value`, whose declared type is `kind`, as a tree."""
  if dataclasses.is_dataclass(value):
    if type(value) not in variants(kind):
      return value  # of a type that does not belong here: `read` says so
    tree = {field: _tree(getattr(value, field), hint) for field, hint in hints(type(value)).items()}
    return {KIND: type(value).__name__, **tree} if len(variants(kind)) > 1 else tree
  if isinstance(value, list | tuple):
    return [_tree(item, _item(kind)) for item in value]
  return value


# ---------------------------------------------------------------------------------------------- reading one value
def read(kind: Any, value: Any, path: str) -> Any:
  """Checks `value` against the type `kind` and returns it as that type.

  Args:
    kind: int, float, str, bool, a dataclass, `tuple[T, ...]`, or a union of these and None.
    value: a tree; dataclasses that are already made may stand in it.
    path: where the value stands, for errors, such as `config.stages[0]`.
  """
  options = variants(kind)
  if value is None:
    if type(None) in _members(kind):
      return None
    raise ConfigError(path, None, f'None is not allowed here: give {describe(kind)}')
  if options and (hasattr(value, 'items') or set(_members(kind)) <= {*options, type(None)}):
    return _read_dataclass(options, _tree(value, kind) if isinstance(value, tuple(options)) else value, path)
  for member in _members(kind):
    if typing.get_origin(member) is tuple and isinstance(value, list | tuple):
      return tuple(read(_item(member), item, f'{path}[{i}]') for i, item in enumerate(value))
    if member is float and isinstance(value, int | float) and not isinstance(value, bool):
      if not math.isfinite(value):
        raise ConfigError(path, value, 'give a finite number')
      return float(value)
    if isinstance(member, type) and isinstance(value, member) and isinstance(value, bool) == (member is bool):
      return value
  comma = ''
  if type(value) in _members(_item(kind)):  # of a tuple that was meant: ('x') is no tuple
    comma = f', such as ({f"{type(value).__name__}(...)" if dataclasses.is_dataclass(value) else repr(value)},)'
  raise ConfigError(path, value, f'give {describe(kind)}, not {type(value).__name__}{comma}')


def _read_dataclass(options: list[type], value: Any, path: str) -> Any:
  if not hasattr(value, 'items'):
    made = ' or '.join(f'{option.__name__}({"..." * bool(hints(option))})' for option in options)
    raise ConfigError(path, value, f'give {made}, or a mapping of its fields' + f' with {KIND}' * (len(options) > 1))
  tree = dict(value.items())
  if len(options) == 1:
    cls = options[0]
  else:
    names = {option.__name__: option for option in options}
    if KIND not in tree:
      raise ConfigError(f'{path}.{KIND}', MISSING, f'say which one: {", ".join(names)}')
    name = tree.pop(KIND)
    if name not in names:
      raise ConfigError(f'{path}.{KIND}', name, f'no such kind; {suggest(name, names)}')
    cls = names[name]
  fields = {field.name: field for field in dataclasses.fields(cls)}
  for name in tree:
    if name not in fields:
      raise ConfigError(f'{path}.{name}', tree[name], f'no such field in {cls.__name__}; {suggest(name, fields)}')
  arguments = {}
  for name, hint in hints(cls).items():
    if name in tree:
      arguments[name] = read(hint, tree[name], f'{path}.{name}')
    elif fields[name].default is fields[name].default_factory:  # both are dataclasses.MISSING: there is no default
      raise ConfigError(f'{path}.{name}', MISSING, f'{cls.__name__} needs it: give {describe(hint)}')
  try:
    return cls(**arguments)
  except ConfigError as error:
    raise error.under(path) from None


# ---------------------------------------------------------------------------------------------- types
@functools.cache
def hints(cls: type) -> dict[str, Any]:
  """Field name -> declared type, in the order of definition."""
  declared = typing.get_type_hints(cls)
  return {field.name: declared[field.name] for field in dataclasses.fields(cls)}


def _members(kind: Any) -> tuple[Any, ...]:
  """The alternatives of a union; a type that is none is its own only one."""
  return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def _is_dataclass(member: Any) -> TypeGuard[type]:
  return isinstance(member, type) and dataclasses.is_dataclass(member)


def variants(kind: Any) -> list[type]:
  """The dataclasses among a type's alternatives."""
  return [member for member in _members(kind) if _is_dataclass(member)]


def _item(kind: Any) -> Any:
  """T of `tuple[T, ...]`."""
  return next((typing.get_args(m)[0] for m in _members(kind) if typing.get_origin(m) is tuple), None)


def dataclasses_of(kind: Any) -> Iterator[type]:
  """Every dataclass that a value of type `kind` may contain, itself included."""
  for member in _members(kind):
    if typing.get_origin(member) is tuple:
      yield from dataclasses_of(_item(member))
    elif _is_dataclass(member):
      yield member
      for hint in hints(member).values():
        yield from dataclasses_of(hint)


def describe(kind: Any) -> str:
  """A type in words: `an integer or None`."""
  words = {int: 'an integer', float: 'a number', str: 'a string', bool: 'True or False', type(None): 'None'}
  return ' or '.join('a tuple' if typing.get_origin(member) is tuple else words.get(member) or member.__name__
                     for member in _members(kind))


def suggest(name: Any, known: Iterable[str]) -> str:
  """`did you mean 'steps'?`, or the whole list where nothing is near."""
  known = list(known)
  near = difflib.get_close_matches(str(name), known, n=1)
  return f'did you mean {near[0]!r}?' if near else f'use one of {", ".join(known)}' if known else 'there are none'


class _Missing:
  def __repr__(self) -> str:
    return '<missing>'


MISSING = _Missing()
