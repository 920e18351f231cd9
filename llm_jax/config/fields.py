"""What a field of a configuration says of itself: its help, its unit, and whether a resumed run may change it.

The help is in the docstring of the class, where a line `name: text` describes a field. The rest is in the field's type:

  warmup: Steps = 0                                                  an integer whose unit is steps
  keep: Safe[int] = 2                                                a resumed run may change it
  every: Annotated[Steps, SafeToChange(averages, 'a stage averages checkpoints')] = 1_000      it may, unless it matters
  clip_norm: InBranch[float | None] = 1.0                            it may, where it goes back to an earlier step
"""
from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

if TYPE_CHECKING:
  from llm_jax.config.run import Run


# ---------------------------------------------------------------------------------------------- what types carry
@dataclasses.dataclass(frozen=True)
class Unit:
  """What a number counts or measures."""
  name: str


@dataclasses.dataclass(frozen=True)
class Change:
  """A field that differs between a run and the one that resumes it.

  run: the run that began.
  owner: the part of it that has the field.
  old, new: the values before and now.
  """
  run: Run
  owner: Any
  old: Any
  new: Any


@dataclasses.dataclass(frozen=True)
class SafeToChange:
  """A resumed run may change the field: the same function is still learnt from the same data.

  unless: whether a change alters what is learnt after all.
  reason: when `unless` says so, for errors and documentation.
  """
  unless: Callable[[Change], bool] = lambda change: False
  reason: str = ''


@dataclasses.dataclass(frozen=True)
class ChangesInBranch:
  """A run that goes back to an earlier step of the stage may change the field: the state keeps its form."""


T = TypeVar('T')
Safe = Annotated[T, SafeToChange()]
InBranch = Annotated[T, ChangesInBranch()]
Devices = Annotated[int, Unit('devices')]
Seconds = Annotated[float, Unit('seconds')]
Sequences = Annotated[int, Unit('sequences')]
Steps = Annotated[int, Unit('steps')]
Tokens = Annotated[int, Unit('tokens')]


# ---------------------------------------------------------------------------------------------- reading them
@dataclasses.dataclass(frozen=True)
class Field:
  """A field of a configuration's class.

  help: the first sentence of the description, without citations; empty where the docstring says nothing.
  unit: of its number, or empty.
  safe: set where a resumed run may change it.
  in_branch: whether a run that goes back to an earlier step may change it.
  """
  name: str
  help: str
  unit: str
  safe: SafeToChange | None
  in_branch: bool = False


@functools.cache
def fields_of(cls: type) -> dict[str, Field]:
  """The fields of a configuration's class by name, in the order of definition."""
  declared = typing.get_type_hints(cls, include_extras=True)
  names = [field.name for field in dataclasses.fields(cls)]
  descriptions: dict[str, str] = {}
  for base in reversed(cls.__mro__):  # what a class says of a field goes before what its base says
    descriptions |= describe_fields(inspect.cleandoc(base.__doc__ or ''), names)
  found: dict[str, Field] = {}
  for name in names:
    carried = list(_carried(declared[name]))
    unit = next((each.name for each in carried if isinstance(each, Unit)), '')
    safe = next((each for each in carried if isinstance(each, SafeToChange)), None)
    in_branch = any(isinstance(each, ChangesInBranch) for each in carried)
    found[name] = Field(name, without_citations(first_sentence(descriptions.get(name, ''))), unit, safe, in_branch)
  return found


def _carried(declared: Any) -> Iterator[Any]:
  """What `Annotated` adds to a type, or to an alternative of a union."""
  if typing.get_origin(declared) is Annotated:
    yield from declared.__metadata__
    yield from _carried(declared.__origin__)
  elif typing.get_origin(declared) in (types.UnionType, typing.Union):
    for alternative in typing.get_args(declared):
      yield from _carried(alternative)


def describe_fields(doc: str, names: list[str]) -> dict[str, str]:
  """Field name -> its description in a docstring.

  `name: text` or `name, other: text` begins one, at the start of a line or after three spaces; it ends before the next
  one or at an empty line.
  """
  found: dict[str, str] = {}
  current: list[str] = []
  for line in re.split(r'\n| {3,}(?=\w+(?:, \w+)*: )', doc):
    entry = re.fullmatch(r'(\w+(?:, \w+)*): (.*)', line.strip())
    named = entry[1].split(', ') if entry else []
    if entry and set(named) <= set(names):
      current = named
      found |= dict.fromkeys(named, entry[2])
    elif not line.strip():
      current = []
    else:
      for name in current:
        found[name] += ' ' + line.strip()
  return found


def first_sentence(text: str) -> str:
  """Up to the full stop that a capital letter or a quotation mark follows, without it."""
  return re.split(r'(?<=\S)\. (?=[A-Z`\'"])', text)[0].removesuffix('.')


def without_citations(text: str) -> str:
  """Without parentheses that name a paper's year, section, equation or appendix."""
  return re.sub(r' \([^()]*\b(?:(?:19|20)\d\d|sections?|equations?|appendix)\b[^()]*\)', '', text)
