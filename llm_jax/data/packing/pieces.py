"""Which pieces of documents stand in which row, planned ahead as an index: any row is assembled on its own.

A row is a list of pieces (document, start, length); token j of a piece predicts token j + 1 of the same document.
"""
import bisect
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from llm_jax.data.token_store import TokenStore

Piece = tuple[int, int, int]  # document, its first token in the row, how many tokens


class Packing(Protocol):
  """Which pieces row i holds, at most `seq_len` tokens in all.

  It packs a window of the documents in their order. A window is counted in what the packing never cuts, tokens or whole
  documents, from 0 to `end`.

  num_cut: how many documents go on in another row.
  """
  num_rows: int
  num_cut: int
  end: int

  def pieces(self, row: int) -> Iterator[Piece]: ...

  def after(self, start: int, tokens: int) -> int:
    """Where a window from `start` ends that has rows for so many tokens."""
    ...


def document_order(count: int, seed: int | None) -> np.ndarray:
  """A permutation of documents that depends on nothing but `seed` (None: as they come), int64 [count].

  Sorted by splitmix64 (Steele et al. 2014) of seed and number, because NumPy's shuffles may change between versions.
  """
  if seed is None:
    return np.arange(count)
  x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed & (1 << 64) - 1)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return np.argsort(x ^ (x >> np.uint64(31)), kind='stable')


class Concat:
  """All documents in one line, cut every `seq_len` tokens.

  The line holds N tokens; row i has tokens [i seq_len, (i + 1) seq_len), and its targets one further. So every token
  but the very first is a target once, and only the last row is padded. A window counts tokens of the line.
  """

  def __init__(self, store: TokenStore, seq_len: int, seed: int | None, window: slice = slice(None)):
    self._seq_len = seq_len
    self._order = document_order(store.num_documents, seed)
    lengths = np.diff(store.offsets)[self._order]
    self._ends = np.cumsum(lengths)  # of each document in the line
    starts = self._ends - lengths
    last_inputs = self._ends - 2  # the last tokens that predict one of their own document
    self.num_cut = int((starts // seq_len < last_inputs // seq_len).sum())
    self.end = int(self._ends[-1]) - 1  # the last token of the line predicts nothing
    self._start, self._stop, _ = window.indices(self.end)
    self.num_rows = -(-(self._stop - self._start) // seq_len)

  def after(self, start: int, tokens: int) -> int:
    return min(start + tokens, self.end)

  def pieces(self, row: int) -> Iterator[Piece]:
    start = self._start + row * self._seq_len
    stop = min(start + self._seq_len, self._stop)
    place = int(np.searchsorted(self._ends, start, side='right'))  # of the document in the line
    while start < stop:
      document_start = int(self._ends[place - 1]) if place else 0
      document_end = int(self._ends[place])
      yield int(self._order[place]), start - document_start, min(document_end, stop) - start
      start = document_end
      place += 1


class BestFit:
  """Documents whole wherever they fit, rows padded (Ding et al. 2024, "Fewer Truncations Improve Language Modeling").

  Documents longer than a row are cut into rows; then every piece, longest first, goes to the fullest row that has
  room for it (best-fit decreasing). Planning takes a few microseconds a document, every time a run starts. A window
  counts documents, in their order.
  """

  def __init__(self, store: TokenStore, seq_len: int, seed: int | None, window: slice = slice(None)):
    order = document_order(store.num_documents, seed)
    inputs = np.diff(store.offsets)[order] - 1  # the last token of a document predicts nothing
    self.end = len(order)
    self._inputs_before = np.concatenate([[0], np.cumsum(inputs)])
    pieces = _cut(order[window], inputs[window], seq_len)
    self.num_cut = int((inputs[window] > seq_len).sum())
    longest_first = pieces[np.argsort(-pieces[:, 2], kind='stable')]
    rows = best_fit_decreasing(longest_first[:, 2].tolist(), seq_len)
    self._pieces = longest_first[np.argsort(rows, kind='stable')]
    self.num_rows = int(rows.max()) + 1
    self._row_ends = np.cumsum(np.bincount(rows, minlength=self.num_rows))  # in _pieces

  def after(self, start: int, tokens: int) -> int:
    enough = self._inputs_before[start] + tokens
    return min(int(np.searchsorted(self._inputs_before, enough)), self.end)

  def pieces(self, row: int) -> Iterator[Piece]:
    first = int(self._row_ends[row - 1]) if row else 0
    yield from self._pieces[first:int(self._row_ends[row])].tolist()


def _cut(documents: np.ndarray, inputs: np.ndarray, seq_len: int) -> np.ndarray:
  """int64 [pieces, 3], see Piece: documents of `inputs` tokens, cut every `seq_len` of them."""
  counts = -(-inputs // seq_len)  # pieces of each document
  first_pieces = np.cumsum(counts) - counts
  starts = (np.arange(counts.sum()) - np.repeat(first_pieces, counts)) * seq_len
  lengths = np.minimum(np.repeat(inputs, counts) - starts, seq_len)
  return np.stack([np.repeat(documents, counts), starts, lengths], axis=1)


def best_fit_decreasing(lengths: Sequence[int], seq_len: int) -> np.ndarray:
  """int64 [pieces]: the row of each piece. Of rows with equally little room left the youngest is taken."""
  rows: list[int] = []
  rows_by_room: list[list[int]] = [[] for _ in range(seq_len + 1)]
  rooms: list[int] = []  # those that any row has, the least first
  num_rows = 0
  for length in lengths:
    place = bisect.bisect_left(rooms, length)
    if place < len(rooms):
      room = rooms[place]
      row = rows_by_room[room].pop()
      if not rows_by_room[room]:
        del rooms[place]
    else:
      room = seq_len
      row = num_rows
      num_rows += 1
    left = room - length
    if left:
      if not rows_by_room[left]:
        bisect.insort(rooms, left)
      rows_by_room[left].append(row)
    rows.append(row)
  return np.array(rows, np.int64)


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
