"""Which pieces of documents stand in which row, planned ahead as an index: any row is assembled on its own.

A row is a list of pieces (document, start, length); token j of a piece predicts token j + 1 of the same document.
"""
import functools
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from llm_jax.data.packing.index import Line, open_line, open_plan
from llm_jax.data.token_store import TokenStore

Piece = tuple[int, int, int]  # document, its first token in the row, how many tokens


class Packing(Protocol):
  """Which pieces row i holds, at most `seq_len` tokens in all.

  It packs a window of the documents in their order. A window is counted in what the packing never cuts, tokens or whole
  documents, from 0 to `end`.

  num_cut: how many documents go on in another row.
  """
  num_rows: int
  end: int

  @property
  def num_cut(self) -> int: ...

  def open(self) -> None:
    """Opens its index, which may be long: else the first row does."""
    ...

  def pieces(self, row: int) -> Iterator[Piece]: ...

  def after(self, start: int, tokens: int) -> int:
    """Where a window from `start` ends that has rows for so many tokens."""
    ...


class Concat:
  """All documents in one line, cut every `seq_len` tokens.

  The line holds N tokens; row i has tokens [i seq_len, (i + 1) seq_len), and its targets one further. So every token
  but the very first is a target once, and only the last row is padded. A window counts tokens of the line.
  """

  def __init__(self, store: TokenStore, seq_len: int, seed: int | None, window: slice = slice(None)):
    self._store, self._seq_len, self._seed = store, seq_len, seed
    self.end = store.num_tokens - 1  # the last token of the line predicts nothing
    self._start, self._stop, _ = window.indices(self.end)
    self.num_rows = -(-(self._stop - self._start) // seq_len)

  @functools.cached_property
  def _line(self) -> Line:
    return open_line(self._store, self._seed)

  def open(self) -> None:
    _ = self._line

  @property
  def num_cut(self) -> int:
    ends = np.asarray(self._line.ends.numbers)
    starts = np.concatenate([[0], ends[:-1]])
    last_inputs = ends - 2  # the last tokens that predict one of their own document
    return int((starts // self._seq_len < last_inputs // self._seq_len).sum())

  def after(self, start: int, tokens: int) -> int:
    return min(start + tokens, self.end)

  def pieces(self, row: int) -> Iterator[Piece]:
    start = self._start + row * self._seq_len
    stop = min(start + self._seq_len, self._stop)
    for document, document_start, document_end in self._line.documents_of(start, stop):
      first = max(start, document_start)
      yield document, first - document_start, min(document_end, stop) - first


class BestFit:
  """Documents whole wherever they fit, rows padded (Ding et al. 2024, "Fewer Truncations Improve Language Modeling").

  Documents longer than a row are cut into rows; then every piece, longest first, goes to the fullest row that has
  room for it (best-fit decreasing). A window counts documents, in their order.
  """

  def __init__(self, store: TokenStore, seq_len: int, seed: int | None, window: slice = slice(None)):
    self._store, self._seed = store, seed
    self.end = store.num_documents
    plan = open_plan(store, seq_len, seed, window)
    self.num_rows = plan.numbers['num_rows']
    self.num_cut = plan.numbers['num_cut']
    self._row_ends = plan.arrays['row_ends']
    self._columns = [plan.arrays[name] for name in ('documents', 'starts', 'lengths')]

  def open(self) -> None:
    """Its plan says how many rows there are, and is open already."""

  def after(self, start: int, tokens: int) -> int:
    line = open_line(self._store, self._seed)
    return min(line.place_of_inputs(line.inputs_before(start) + tokens), self.end)

  def pieces(self, row: int) -> Iterator[Piece]:
    first = int(self._row_ends[row - 1]) if row else 0
    part = slice(first, int(self._row_ends[row]))
    yield from zip(*(column[part].tolist() for column in self._columns), strict=True)


def assemble(pieces: Iterable[tuple[np.ndarray, np.ndarray | None, int]], seq_len: int,
             eot: int) -> dict[str, np.ndarray]:
  """A row [seq_len] of pieces (ids, counts, length), then padding.

  `length` of the ids are inputs, and one more is there where a target follows. counts: which ids are targets; None:
  all.
  """
  tokens = np.zeros(seq_len, np.int32)
  targets = np.zeros(seq_len, np.int32)
  positions = np.zeros(seq_len, np.int32)
  segment_ids = np.zeros(seq_len, np.int32)
  weights = np.zeros(seq_len, np.float32)
  start = 0
  for segment, (ids, counts, length) in enumerate(pieces, 1):
    end = start + length
    last_target = start + len(ids) - 1
    tokens[start:end] = ids[:length]
    targets[start:last_target] = ids[1:]
    targets[last_target:end] = eot  # a document's last token predicts nothing
    weights[start:last_target] = 1 if counts is None else counts[1:]
    positions[start:end] = np.arange(length)
    segment_ids[start:end] = segment
    start = end
  return {'tokens': tokens, 'targets': targets, 'weights': weights, 'positions': positions, 'segment_ids': segment_ids}
