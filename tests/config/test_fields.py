"""What fields say of themselves: help, unit, whether a resumed run may change them."""
import dataclasses
from typing import Annotated

import pytest

from llm_jax.config import schema, type_hints
from llm_jax.config.fields import Safe, SafeToChange, Steps, Tokens, describe_fields, fields_of, first_sentence
from llm_jax.config.run import Checkpoints, Mesh, Run
from llm_jax.config.stage import Stage

LONGEST = 110  # characters of help: two or three lines beside a field
KINDS = [kind for kind in dict.fromkeys(type_hints.dataclasses_of(Run)) if dataclasses.fields(kind)]


@pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.__name__)
def test_every_field_has_a_line_of_help(kind):
  """In the docstring of its class: a new field needs a line `name: what it is`."""
  for field in fields_of(kind).values():
    assert 0 < len(field.help) <= LONGEST, f'{kind.__name__}.{field.name}: {field.help!r}'
    assert '\n' not in field.help and not field.help.endswith('.'), f'{kind.__name__}.{field.name}: {field.help!r}'


def test_descriptions_in_a_docstring():
  text = ('A class. It has parts.\n\nfirst: the first one.   second: the other one,\nover two lines. More of it.\n'
          'third, fourth: both.\n\nunknown: not a field.\nfirst_of_all: nor this.')
  assert describe_fields(text, ['first', 'second', 'third', 'fourth', 'fifth']) == {
    'first': 'the first one.', 'second': 'the other one, over two lines. More of it.', 'third': 'both.',
    'fourth': 'both.'}
  assert first_sentence('the other one, over two lines. More of it.') == 'the other one, over two lines'
  assert (
    first_sentence('of eps (Su et al. 2021, section 3.4.2). None: nothing') == 'of eps (Su et al. 2021, section 3.4.2)'
  )


class Base:
  """size: of the base.   count: how many."""


@dataclasses.dataclass(frozen=True)
class Part(Base):
  """A part.

  size: of the part.
  """
  size: Tokens | None = None
  count: Safe[Steps] = 0
  name: Annotated[str, SafeToChange(unless=lambda change: change.new == 'a')] = ''


def test_what_types_carry():
  size, count, name = fields_of(Part).values()
  assert (size.help, size.unit, size.safe) == ('of the part', 'tokens', None)
  assert (count.help, count.unit) == ('how many', 'steps') and count.safe is not None and name.safe is not None
  assert type_hints.hints(Part) == {'size': int | None, 'count': int, 'name': str}
  assert schema.read(Part, {'size': 3, 'count': 2, 'name': 'x'}, 'part') == Part(3, 2, 'x')


def test_units_and_safety_of_a_run():
  assert fields_of(Stage)['steps'].unit == 'steps' and fields_of(Mesh)['fsdp'].unit == 'devices'
  assert [name for name, field in fields_of(Run).items() if field.safe] == [
    'mesh', 'context_attention', 'stall_seconds', 'leak_test', 'log_every', 'trackers']
  assert [name for name, field in fields_of(Stage).items() if field.safe] == [
    'microbatches', 'max_nonfinite', 'remat', 'optimizer_memory', 'evals']
  assert all(field.safe for field in fields_of(Checkpoints).values())
