"""Rows of a source in a stage whose sequence length changes: what was read in one length is not read again in the
next."""
import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from llm_jax.config.ramp import Phase
from llm_jax.data.packing.pieces import Packing
from llm_jax.data.packing.rows import Fields, LengthStart, Rows
from llm_jax.data.packing.text import TextRows


def length_phases(phases: Sequence[Phase]) -> list[Phase]:
  """The phases that begin with another sequence length than the one before them had, the first of all among them."""
  if not phases:
    return []
  changes = [new for old, new in itertools.pairwise(phases) if new.seq_len != old.seq_len]
  return [phases[0], *changes]


@dataclasses.dataclass(frozen=True)
class _Section:
  """The documents that are read while the sequence length is this one, until it changes.

  first: rows that the source has given before.
  rows: of its own documents; None where none are left for it.
  order: the order in which they are given, a permutation of their numbers.
  first_row: the number of their first in RampRows, which counts the rows of all sections.
  num_repeats: rows of whole epochs that follow them, as its own are too few.
  """
  first: int
  rows: TextRows | None
  order: Sequence[int]
  first_row: int
  num_repeats: int


class RampRows(Rows):
  """Rows of one source in one sequence length of several, and the order in which they are given.

  Between two changes of the length a source gives rows of a section of its documents: the next ones in its shuffled
  order, as many as are needed, in another order of rows; when all documents are used up it goes on with whole epochs.
  So until a source is used up no token of it is a target twice, whatever the ramp. With packing='concat' none is left
  out either: a document may go on in the next length. With 'best_fit' none does, and each change of length leaves out
  documents: as many tokens as were padding, and less than one document more.

  whole: the rows of an epoch in this sequence length.
  starts: all changes of the length in the stage.
  The length of RampRows is that of an epoch. Its rows come first in number, then those of each section.
  """

  def __init__(self, whole: TextRows, starts: Sequence[LengthStart], seed: int):
    self.whole = whole
    self.store = whole.store
    self.num_targets = whole.num_targets
    self._sections = _make_sections(whole, starts, seed)
    self._epochs = _shuffled(len(whole), seed).repeat()

  def open(self) -> None:
    self.whole.open()
    for section in self._sections:
      if section.rows is not None:
        section.rows.open()

  def __len__(self) -> int:
    return len(self.whole)

  def __getitem__(self, row: int) -> Fields:
    rows, place = self._find(row)
    return rows[place]

  @property
  def padding(self) -> Fields:
    return self.whole.padding

  @staticmethod
  def to_batch(fields: Fields) -> Any:
    return TextRows.to_batch(fields)

  def documents(self, row: int) -> Iterator[np.ndarray]:
    rows, place = self._find(row)
    return rows.documents(place)

  def warnings(self) -> Iterator[str]:
    return self.whole.warnings()

  def order(self, seed: int) -> Callable[[int], int]:
    return self.row_of

  def row_of(self, count: int) -> int:
    """The number of the row that the source gives after `count` others."""
    current = bisect.bisect_right(self._sections, count, key=lambda section: section.first) - 1
    section = self._sections[current]
    place = count - section.first
    if place < len(section.order):
      return section.first_row + int(section.order[place])
    given_before = sum(earlier.num_repeats for earlier in self._sections[:current])
    return int(self._epochs[given_before + place - len(section.order)])

  def _find(self, row: int) -> tuple[TextRows, int]:
    """The rows that a row is one of, and its number among them."""
    if row < len(self.whole):
      return self.whole, row
    current = bisect.bisect_right(self._sections, row, key=lambda section: section.first_row) - 1
    section = self._sections[current]
    assert section.rows is not None  # a section without rows has no row numbers
    return section.rows, row - section.first_row


def _make_sections(whole: TextRows, starts: Sequence[LengthStart], seed: int) -> list[_Section]:
  """The sections in the sequence length of `whole`."""
  ends = [start.rows_before for start in starts[1:]]
  sections: list[_Section] = []
  first_row = len(whole)
  for i, (start, window) in enumerate(zip(starts, windows(whole.packing, starts), strict=True)):
    if start.seq_len != whole.seq_len:
      continue
    rows = whole.part(window) if window.start < window.stop else None
    num_rows = 0 if rows is None else len(rows)
    is_last = i == len(ends)  # it goes on until the stage ends
    num_given = 0 if is_last else ends[i] - start.rows_before
    sections.append(_Section(
      first=start.rows_before,
      rows=rows,
      order=() if rows is None else _shuffled(num_rows, seed),
      first_row=first_row,
      num_repeats=max(0, num_given - num_rows),
    ))
    first_row += num_rows
  return sections


def _shuffled(count: int, seed: int) -> Any:
  """A permutation of range(count): a grain.MapDataset."""
  import grain
  return grain.MapDataset.range(count).shuffle(seed=seed)


def windows(packing: Packing, starts: Sequence[LengthStart]) -> list[slice]:
  """The part of the documents that each section has: enough for its rows, the last one all that is left."""
  bounds = [0]
  for start, following in itertools.pairwise(starts):
    num_rows = following.rows_before - start.rows_before
    bounds.append(packing.after(bounds[-1], num_rows * start.seq_len))
  return [slice(first, stop) for first, stop in itertools.pairwise([*bounds, packing.end])]
