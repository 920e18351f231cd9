"""A source in a stage whose sequence length changes: what was read in one sequence length is not read again in the
next."""
import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from llm_jax.config.ramp import Phase
from llm_jax.data.packing.pieces import Packing
from llm_jax.data.packing.rows import Fields, Rows
from llm_jax.data.packing.text import TextRows


def stretches_of(phases: Sequence[Phase]) -> list[Phase]:
  """The first phase of each stretch of steps of one sequence length."""
  if not phases:
    return []
  changes = [new for old, new in itertools.pairwise(phases) if new.seq_len != old.seq_len]
  return [phases[0], *changes]


class Stretches(Rows):
  """Rows of one source in one sequence length of several, and the order in which they are given.

  Every stretch of steps of one sequence length has documents of its own, the next ones in the source's shuffled order,
  as many as it takes, and gives their rows in another order; when all are used up it goes on with whole epochs. So
  until a source is used up no token of it is a target twice, whatever the ramp. With packing='concat' none is left out
  either, a document may go on in the next sequence length; with 'best_fit' none does, and each change of length leaves
  out documents, as many tokens as were padding and less than one document more.

  whole: the rows of an epoch in this sequence length.
  starts: of each stretch its sequence length, and how many rows the source has given before it.
  The length is that of an epoch; its rows come first in number, then those of each stretch.
  """

  def __init__(self, whole: TextRows, starts: Sequence[tuple[int, int]], seed: int):
    import grain
    shuffled = lambda part: grain.MapDataset.range(len(part)).shuffle(seed=seed)
    self.whole, self.store, self.num_targets = whole, whole.store, whole.num_targets
    found = zip(starts, windows(whole.packing, starts), strict=True)
    mine = [(first, window) for (seq_len, first), window in found if seq_len == whole.seq_len]
    self._starts = [first for first, _ in mine]
    parts = [whole.part(window) if window.start < window.stop else () for _, window in mine]
    self._parts = [whole, *parts]
    self._offsets = [0, *itertools.accumulate(map(len, self._parts))]
    self._again = [0, *itertools.accumulate(self._repeats(starts, parts))]
    self._epochs = shuffled(whole).repeat()
    self._orders = [shuffled(part) if part else () for part in parts]

  def _repeats(self, starts: Sequence[tuple[int, int]], parts: Sequence[TextRows | tuple[()]]) -> Iterator[int]:
    """Rows of whole epochs that each stretch of this sequence length gives, after its own."""
    ends = dict(itertools.pairwise(first for _, first in starts))
    for first, part in zip(self._starts, parts, strict=True):
      yield max(0, ends.get(first, first) - first - len(part))

  def __len__(self) -> int:
    return len(self.whole)

  def __getitem__(self, row: int) -> Fields:
    part, place = self._find(row)
    return part[place]

  @property
  def padding(self) -> Fields:
    return self.whole.padding

  @staticmethod
  def to_batch(fields: Fields):
    return TextRows.to_batch(fields)

  def documents(self, row: int) -> Iterator[np.ndarray]:
    part, place = self._find(row)
    return part.documents(place)

  def warnings(self) -> Iterator[str]:
    return self.whole.warnings()

  def order(self, seed: int) -> Callable[[int], int]:
    return self.row_of

  def row_of(self, count: int) -> int:
    """The number of the row that the source gives after `count` others."""
    stretch = bisect.bisect_right(self._starts, count) - 1
    place = count - self._starts[stretch]
    order = self._orders[stretch]
    if place < len(order):
      return self._offsets[stretch + 1] + int(order[place])
    return int(self._epochs[self._again[stretch] + place - len(order)])

  def _find(self, row: int) -> tuple[TextRows, int]:
    part = bisect.bisect_right(self._offsets, row) - 1
    return self._parts[part], row - self._offsets[part]


def windows(packing: Packing, starts: Sequence[tuple[int, int]]) -> list[slice]:
  """The part of the documents that each stretch has: enough for its rows, the last one all that is left."""
  bounds = [0]
  for (seq_len, first), (_, after) in itertools.pairwise(starts):
    bounds.append(packing.after(bounds[-1], (after - first) * seq_len))
  return [slice(a, b) for a, b in itertools.pairwise([*bounds, packing.end])]
