"""Answers side by side in the rows of a step, so that little of what is computed is padding."""
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from llm_jax.data.packing.index import best_fit_decreasing

PADDING = -1


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where answers stand, int32 [rows, time] each.

  answers: whose number in the rollout, or `PADDING`.   places: of the answer's ids, from its prompt's first on.
  segment_ids: which answer of the row it is, from 1; 0 is padding.
  """
  answers: np.ndarray
  places: np.ndarray
  segment_ids: np.ndarray

  @property
  def is_padding(self) -> np.ndarray:
    return self.answers == PADDING

  @property
  def num_tokens(self) -> int:
    """That are no padding."""
    return int((~self.is_padding).sum())

  def gather(self, array: np.ndarray) -> np.ndarray:
    """[rows, time] of an array [answers of the rollout, places or more]; 0 in padding."""
    found = array[np.maximum(self.answers, 0), self.places]
    return np.where(self.is_padding, 0, found).astype(array.dtype)

  def scatter(self, found: np.ndarray, into: np.ndarray) -> None:
    """The reverse: puts what was found [rows, time] into an array [answers of the rollout, places]."""
    is_here = ~self.is_padding
    into[self.answers[is_here], self.places[is_here]] = found[is_here]

  def rows(self, first: int, count: int, padded_to: int) -> 'Layout':
    """Some of the rows, and empty ones behind them."""
    def cut(array: np.ndarray, fill: int) -> np.ndarray:
      part = array[first:first + count]
      return np.pad(part, ((0, padded_to - len(part)), (0, 0)), constant_values=fill)
    return Layout(cut(self.answers, PADDING), cut(self.places, 0), cut(self.segment_ids, 0))


def pack(numbers: np.ndarray, lengths: np.ndarray, seq_len: int) -> Layout:
  """Puts answers into as few rows as best-fit decreasing finds.

  numbers: of the answers in the rollout.   lengths: of each, prompt included, at most `seq_len`.
  """
  longest_first = np.argsort(-lengths, kind='stable')
  numbers, lengths = numbers[longest_first], lengths[longest_first]
  row_of = best_fit_decreasing(lengths.tolist(), seq_len)
  shape = (int(row_of.max()) + 1, seq_len)
  layout = Layout(np.full(shape, PADDING, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32))
  ends, segments = np.zeros(shape[0], np.int64), np.zeros(shape[0], np.int64)
  for number, length, row in zip(numbers, lengths, row_of, strict=True):
    span = slice(ends[row], ends[row] + length)
    segments[row] += 1
    layout.answers[row, span] = number
    layout.places[row, span] = np.arange(length)
    layout.segment_ids[row, span] = segments[row]
    ends[row] += length
  return layout


def in_parts(layout: Layout, sizes: Sequence[int]) -> Iterator[Layout]:
  """The rows in turn, in parts of the largest size; the last one of the least that its rows fit into."""
  largest = max(sizes)
  num_rows = len(layout.answers)
  for first in range(0, num_rows, largest):
    left = min(num_rows - first, largest)
    yield layout.rows(first, left, padded_to=min(size for size in sizes if size >= left))
