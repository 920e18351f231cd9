"""What one training row holds. An objective and a source each name the kind that they need or give, so that the two are
checked against each other before anything is read."""
import dataclasses
import typing
from typing import Any

__all__: list[str] = []  # nothing that an experiment names


@dataclasses.dataclass(frozen=True)
class RowKind:
  """A kind of training row.

  name: of the kind, in messages.
  sequences: token sequences of the stage's `seq_len` in one row.
  is_packed: whether documents are packed into rows of any length. Where they are not, a document stands in one row and
    is cut to it, so that `seq_len` cannot change within a stage.
  """
  name: str
  sequences: int = 1
  is_packed: bool = False


TEXT = RowKind('text', is_packed=True)
PAIRS = RowKind('pairs of answers', sequences=2)
RANKED = RowKind('ranked answers')  # as many sequences as the source has answers
LABELLED = RowKind('texts with classes')
PROMPTS = RowKind('prompts')  # what is learnt from are answers to them, sampled as the stage goes on
RATED = RowKind('rated answers', sequences=2)  # the answer, and another prompt's answer in its place


def names_with(union: Any, rows: RowKind) -> str:
  """The classes of a union that have rows of this kind, as a message lists them: `DPO, IPO or SLiC`."""
  names = [option.__name__ for option in typing.get_args(union)
           if rows in (option.rows, *getattr(option, 'other_rows', ()))]
  *others, last = names or ['none']
  return f'{", ".join(others)} or {last}' if others else last
