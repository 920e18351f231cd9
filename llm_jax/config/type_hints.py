"""The declared types of a configuration's fields, taken apart: unions, tuples, dataclasses."""
import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

WORDS = {int: 'an integer', float: 'a number', str: 'a string', bool: 'True or False', type(None): 'None'}


def is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
  """Whether a value of a tree has named parts: a dict, or a ConfigDict, which is no Mapping."""
  return hasattr(value, 'items')


def is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
  """Whether a value of a tree has parts in an order."""
  return isinstance(value, list | tuple)


@functools.cache
def hints(cls: type) -> dict[str, Any]:
  """Field name -> declared type, in the order of definition. What `Annotated` adds is left out."""
  declared = typing.get_type_hints(cls)
  return {field.name: declared[field.name] for field in dataclasses.fields(cls)}


def alternatives(kind: Any) -> tuple[Any, ...]:
  """The alternatives of a union; a type that is no union is its own only one."""
  is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
  return typing.get_args(kind) if is_union else (kind,)


def variants(kind: Any) -> list[type]:
  """The dataclasses among a type's alternatives."""
  return [each for each in alternatives(kind) if dataclasses.is_dataclass(each) and isinstance(each, type)]


def is_tuple(kind: Any) -> bool:
  """Whether a type is `tuple[T, ...]`."""
  return typing.get_origin(kind) is tuple


def item_type(kind: Any) -> Any:
  """T where `tuple[T, ...]` is an alternative of `kind`, else None."""
  for each in alternatives(kind):
    if is_tuple(each):
      return typing.get_args(each)[0]
  return None


def dataclasses_of(kind: Any) -> Iterator[type]:
  """Every dataclass that a value of type `kind` may contain, itself included."""
  for each in alternatives(kind):
    if is_tuple(each):
      yield from dataclasses_of(item_type(each))
  for cls in variants(kind):
    yield cls
    for hint in hints(cls).values():
      yield from dataclasses_of(hint)


def describe(kind: Any) -> str:
  """A type in words: `an integer or None`."""
  return ' or '.join('a tuple' if is_tuple(each) else WORDS.get(each) or each.__name__ for each in alternatives(kind))


def suggest(name: Any, known: Iterable[str]) -> str:
  """`did you mean 'steps'?`, or the whole list where nothing is near."""
  names = list(known)
  near = difflib.get_close_matches(str(name), names, n=1)
  if near:
    return f'did you mean {near[0]!r}?'
  return f'use one of {", ".join(names)}' if names else 'there are none'
