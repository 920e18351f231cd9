"""A source in a stage whose sequence length changes: what was read in one sequence length is not read again in the
next."""
import bisect
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from llm_jax.config.ramp import Phase
from llm_jax.data.packing.text import Packing, Rows


def stretches_of(phases: Sequence[Phase]) -> list[Phase]:
  """The first phase of each stretch of steps of one sequence length."""
  return [phases[0], *(new for old, new in itertools.pairwise(phases) if new.seq_len != old.seq_len)] if phases else []


class Stretches:
  """Rows of one source in one sequence length of several, and the order in which they are given.

  Every stretch of steps of one sequence length has documents of its own, the next ones in the source's shuffled order,
  as many as it takes, and gives their rows in another order; when all are used up it goes on with whole epochs. So
  until a source is used up no token of it is a target twice, whatever the ramp. With packing='concat' none is left out
  either, a document may go on in the next sequence length; with 'best_fit' none does, and each change of context
  leaves out documents, as many tokens as were padding and less than one document more.

  whole: the rows of an epoch in this sequence length. starts: of each stretch its context, and how many rows the
  source has given before it. The length is that of an epoch; its rows come first in number, then those of each
  stretch.
  """

  def __init__(self, whole: Rows, starts: Sequence[tuple[int, int]], seed: int):
    import grain
    shuffled = lambda part: grain.MapDataset.range(len(part)).shuffle(seed=seed)
    self.store, self.num_targets, self.num_cut = whole.store, whole.num_targets, whole.num_cut
    found = zip(starts, windows(whole.packing, starts), strict=True)
    mine = [(first, window) for (seq_len, first), window in found if seq_len == whole.seq_len]
    self._starts = [first for first, _ in mine]
    self._parts = [whole, *(whole.part(window) if window.start < window.stop else () for _, window in mine)]
    self._offsets = [0, *itertools.accumulate(map(len, self._parts))]
    ends = dict(itertools.pairwise(first for _, first in starts))
    again = [max(0, ends.get(first, first) - first - len(part))
             for first, part in zip(self._starts, self._parts[1:], strict=True)]
    self._again = [0, *itertools.accumulate(again)]  # rows of whole epochs that the stretches before have given
    self._epochs, self._orders = shuffled(whole).repeat(), [shuffled(part) if part else () for part in self._parts[1:]]

  def __len__(self) -> int:
    return len(self._parts[0])

  def __getitem__(self, row: int) -> dict[str, np.ndarray]:
    part, place = self._find(row)
    return part[place]

  def documents(self, row: int) -> Iterator[np.ndarray]:
    """The ids of every piece of a row, with the one after it where that is a target."""
    part, place = self._find(row)
    return part.documents(place)

  def row_of(self, count: int) -> int:
    """The number of the row that the source gives after `count` others."""
    stretch = bisect.bisect_right(self._starts, count) - 1
    place, order = count - self._starts[stretch], self._orders[stretch]
    if place < len(order):
      return self._offsets[stretch + 1] + int(order[place])
    return int(self._epochs[self._again[stretch] + place - len(order)])

  def _find(self, row: int) -> tuple[Rows, int]:
    part = bisect.bisect_right(self._offsets, row) - 1
    return self._parts[part], row - self._offsets[part]


def windows(packing: Packing, starts: Sequence[tuple[int, int]]) -> list[slice]:
  """The part of the documents that each stretch has: enough for its rows, the last one all that is left."""
  bounds = [0]
  for (seq_len, first), (_, after) in itertools.pairwise(starts):
    bounds.append(packing.after(bounds[-1], (after - first) * seq_len))
  return [slice(a, b) for a, b in itertools.pairwise([*bounds, packing.end])]
