"""Between trees (ConfigDict, JSON) and the frozen dataclasses of a run; whatever comes in is checked.

A tree is nested mappings and sequences of plain values. A dataclass is a mapping of its fields; where a field's type
is a union of dataclasses, the mapping also has the class's name under `kind`. Every error is a `ConfigError` that names
the field from the root, the value and what to change.
"""
import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Generator
from typing import Any

from llm_jax.config.errors import ConfigError
from llm_jax.config.run import Run
from llm_jax.config.type_hints import (
  alternatives,
  describe,
  hints,
  is_mapping,
  is_sequence,
  is_tuple,
  item_type,
  suggest,
  variants,
)

KIND = 'kind'
LONGEST_EXAMPLE = 80  # characters


class _Missing:
  def __repr__(self) -> str:
    return '<missing>'


MISSING = _Missing()

_checks = contextvars.ContextVar('_checks', default=True)  # whether parts are checked as they are made


@contextlib.contextmanager
def unchecked() -> Generator[None]:
  """While it lasts, `read` looks at names and types only: values that do not fit together may be mended later, and the
  tree of the result is checked when it is read again."""
  token = _checks.set(False)
  try:
    yield
  finally:
    _checks.reset(token)


# ---------------------------------------------------------------------------------------------- out and in
def to_json(run: Any) -> dict[str, Any]:
  """A run as dicts, lists and plain values, ready for `json.dump`; `from_json` gives back an equal run."""
  return _to_tree(run, type(run))


def from_json(tree: Any) -> Run:
  """A tree, such as `json.load` returns, as a checked `Run`.

  Raises:
    ConfigError: an unknown field or kind, a missing field, a wrong type, a number that is not finite, or whatever the
      dataclasses themselves refuse.
  """
  return read(Run, tree, 'config')


def to_config_dict(run: Run) -> Any:
  """A run as an `ml_collections.ConfigDict`, every field present. Stages and the like are tuples: they keep order."""
  import ml_collections  # pyright: ignore[reportMissingTypeStubs]  # here, because `config/` starts in milliseconds

  def convert(tree: Any) -> Any:
    if is_mapping(tree):
      return ml_collections.ConfigDict({key: convert(value) for key, value in tree.items()})
    if is_sequence(tree):
      return tuple(convert(value) for value in tree)
    return tree

  return convert(to_json(run))


def from_config_dict(config: Any) -> Run:
  """A ConfigDict (or plain dict) as a checked `Run`; errors as in `from_json`."""
  return from_json(plain(config))


def plain(tree: Any) -> Any:
  """A copy with mappings (ConfigDict too, references resolved) as dicts and sequences as lists."""
  if is_mapping(tree):
    return {key: plain(value) for key, value in tree.items()}
  if is_sequence(tree):
    return [plain(value) for value in tree]
  return tree


def _to_tree(value: object, kind: Any) -> Any:
  """`value`, whose declared type is `kind`, as a tree."""
  if is_sequence(value):
    return [_to_tree(item, item_type(kind)) for item in value]
  cls = type(value)
  if cls not in variants(kind):  # a plain value, or one of a wrong type, which `read` refuses
    return value
  tree = {name: _to_tree(getattr(value, name), hint) for name, hint in hints(cls).items()}
  if len(variants(kind)) > 1:
    return {KIND: cls.__name__, **tree}
  return tree


# ---------------------------------------------------------------------------------------------- reading one value
def read(kind: Any, value: Any, path: str) -> Any:
  """Checks `value` against the type `kind` and returns it as that type.

  Args:
    kind: int, float, str, bool, a dataclass, `tuple[T, ...]`, or a union of these and None.
    value: a tree; dataclasses that are already made may stand in it.
    path: where the value stands, for errors, such as `config.stages[0]`.
  """
  return _read(kind, value, path)


def _read(kind: Any, value: Any, path: str) -> Any:
  if value is None:
    _require_optional(kind, path)
    return None
  classes = variants(kind)
  has_fields = is_mapping(value) or type(value) in classes
  only_classes = set(alternatives(kind)) <= {*classes, type(None)}
  if classes and (has_fields or only_classes):
    tree = _to_tree(value, kind) if type(value) in classes else value
    return _read_dataclass(classes, tree, path)
  for each in alternatives(kind):
    if is_tuple(each) and is_sequence(value):
      return tuple(_read(item_type(each), item, f'{path}[{i}]') for i, item in enumerate(value))
    if each is float and isinstance(value, int | float) and not isinstance(value, bool):
      return _finite(value, path)
    if isinstance(each, type) and _is_instance(value, each):
      return _in_64_bits(value, path) if isinstance(value, int) else value
  raise ConfigError(path, value, f'give {describe(kind)}, not {type(value).__name__}{_as_tuple(value, kind)}')


def _require_optional(kind: Any, path: str) -> None:
  if type(None) not in alternatives(kind):
    raise ConfigError(path, None, f'None is not allowed here: give {describe(kind)}')


def _is_instance(value: Any, cls: type) -> bool:
  """As `isinstance`, but True is no integer."""
  return isinstance(value, cls) and isinstance(value, bool) == (cls is bool)


def _in_64_bits(value: int, path: str) -> int:
  if not -2**63 <= value < 2**63:
    raise ConfigError(path, _shortened(value), 'give a number of 64 bits')
  return value


def _finite(value: int | float, path: str) -> float:
  try:
    number = float(value)
  except OverflowError:  # an integer of hundreds of digits
    number = math.inf
  if not math.isfinite(number):
    raise ConfigError(path, _shortened(value), 'give a finite number')
  return number


def _shortened(value: int | float) -> int | float | str:
  """The value; of an integer so long that Python does not print it, that it is one."""
  is_long = isinstance(value, int) and abs(value) >= 10**400
  return 'an integer of more than 400 digits' if is_long else value


def _as_tuple(value: Any, kind: Any) -> str:
  """How a value is written as the only item of a tuple, where it could be one: ('x') is no tuple."""
  if type(value) not in alternatives(item_type(kind)):
    return ''
  item = f'{type(value).__name__}(...)' if dataclasses.is_dataclass(value) else repr(value)
  return f', such as ({item},)' if len(item) <= LONGEST_EXAMPLE else ''


# ---------------------------------------------------------------------------------------------- dataclasses
def _read_dataclass(classes: list[type], value: Any, path: str) -> Any:
  """One of `classes` from the mapping of its fields."""
  if not is_mapping(value):
    raise ConfigError(path, value, _calls(classes))
  tree = dict(value.items())
  cls = _chosen(classes, tree, path)
  _require_known(cls, tree, path)
  arguments: dict[str, Any] = {}
  for field in dataclasses.fields(cls):
    hint = hints(cls)[field.name]
    if field.name in tree:
      arguments[field.name] = _read(hint, tree[field.name], f'{path}.{field.name}')
    elif _is_required(field):
      raise ConfigError(f'{path}.{field.name}', MISSING, f'{cls.__name__} needs it: give {describe(hint)}')
  if not _checks.get():
    return _without_checks(cls, arguments)
  try:
    return cls(**arguments)
  except ConfigError as error:
    raise error.under(path) from None


def _without_checks(cls: type, arguments: dict[str, Any]) -> Any:
  """As `cls(**arguments)`, without its `__post_init__`, which in a configuration only checks."""
  make: Any = object.__new__
  part: Any = make(cls)
  for field in dataclasses.fields(cls):
    if field.name in arguments:
      value = arguments[field.name]
    elif field.default is not dataclasses.MISSING:
      value = field.default
    else:
      assert field.default_factory is not dataclasses.MISSING, 'a required field was given'
      value = field.default_factory()
    object.__setattr__(part, field.name, value)
  return part


def _calls(classes: list[type]) -> str:
  """`give A(...) or B(), or a mapping of its fields with kind`."""
  calls = [f'{cls.__name__}(...)' if hints(cls) else f'{cls.__name__}()' for cls in classes]
  with_kind = f' with {KIND}' if len(classes) > 1 else ''
  return f'give {" or ".join(calls)}, or a mapping of its fields{with_kind}'


def _chosen(classes: list[type], tree: dict[str, Any], path: str) -> type:
  """The class that `kind` names, which is taken out of the tree; the only one needs no name."""
  if len(classes) == 1:
    return classes[0]
  by_name = {cls.__name__: cls for cls in classes}
  if KIND not in tree:
    raise ConfigError(f'{path}.{KIND}', MISSING, f'say which one: {", ".join(by_name)}')
  name = tree.pop(KIND)
  if not isinstance(name, str) or name not in by_name:
    raise ConfigError(f'{path}.{KIND}', name, f'no such kind; {suggest(name, by_name)}')
  return by_name[name]


def _require_known(cls: type, tree: dict[str, Any], path: str) -> None:
  known = hints(cls)
  for name, value in tree.items():
    if name not in known:
      raise ConfigError(f'{path}.{name}', value, f'no such field in {cls.__name__}; {suggest(name, known)}')


def _is_required(field: dataclasses.Field[Any]) -> bool:
  return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
