"""Which pieces of documents stand in which row, planned ahead as an index: any row is assembled on its own.

A row is a list of pieces (document, start, length); token j of a piece predicts token j + 1 of the same document.
"""
import bisect
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from llm_jax.data.token_store import TokenStore

Piece = tuple[int, int, int]  # document, its first token in the row, how many tokens


class Packing(Protocol):
  """Which pieces row i holds, at most `seq_len` tokens in all.

  A window is a part of the line that the documents stand in, of whatever the packing does not cut: from 0 to `end`.
  after(start, tokens): where a window ends that has rows for so many tokens.
  num_cut: how many documents go on in another row.
  """
  num_rows: int
  num_cut: int
  end: int

  def pieces(self, row: int) -> Iterator[Piece]: ...

  def after(self, start: int, tokens: int) -> int: ...


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
  but the very first is a target once, and only the last row is padded. A window counts tokens.
  """

  def __init__(self, store: TokenStore, seq_len: int, seed: int | None, window: slice = slice(None)):
    self._context = seq_len
    self._order = document_order(store.num_documents, seed)
    lengths = np.diff(store.offsets)[self._order]
    self._ends = np.cumsum(lengths)
    last = self._ends - 2  # that predicts a token of its own document
    self.num_cut = int(((self._ends - lengths) // seq_len < last // seq_len).sum())
    self.end = int(self._ends[-1]) - 1  # the last token predicts nothing
    self._start, self._stop, _ = window.indices(self.end)
    self.num_rows = -(-(self._stop - self._start) // seq_len)

  def after(self, start: int, tokens: int) -> int:
    return min(start + tokens, self.end)

  def pieces(self, row: int) -> Iterator[Piece]:
    start = self._start + row * self._context
    stop = min(start + self._context, self._stop)
    place = int(np.searchsorted(self._ends, start, side='right'))
    while start < stop:
      begins, ends = int(self._ends[place - 1]) if place else 0, int(self._ends[place])
      yield int(self._order[place]), start - begins, min(ends, stop) - start
      start, place = ends, place + 1


class BestFit:
  """Documents whole wherever they fit, rows padded (Ding et al. 2024, "Fewer Truncations Improve Language Modeling").

  Documents longer than a row are cut into rows; then every piece, longest first, goes to the fullest row that has
  room for it (best-fit decreasing). Planning takes a few microseconds a document, every time a run starts. A window
  counts documents.
  """

  def __init__(self, store: TokenStore, seq_len: int, seed: int | None, window: slice = slice(None)):
    order = document_order(store.num_documents, seed)
    inputs = np.diff(store.offsets)[order] - 1  # the last token of a document predicts nothing
    self.end, self._before = len(order), np.concatenate([[0], np.cumsum(inputs)])
    order, inputs = order[window], inputs[window]
    counts = -(-inputs // seq_len)
    self.num_cut = int((counts > 1).sum())
    documents = np.repeat(order, counts)
    starts = (np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)) * seq_len
    lengths = np.minimum(np.repeat(inputs, counts) - starts, seq_len)
    by_length = np.argsort(-lengths, kind='stable')
    rows = _best_fit_decreasing(lengths[by_length].tolist(), seq_len)
    by_row = np.argsort(rows, kind='stable')
    self._pieces = np.stack([documents, starts, lengths], axis=1)[by_length[by_row]]
    self.num_rows = int(rows.max()) + 1
    self._row_ends = np.cumsum(np.bincount(rows, minlength=self.num_rows))

  def after(self, start: int, tokens: int) -> int:
    return min(int(np.searchsorted(self._before, self._before[start] + tokens)), self.end)

  def pieces(self, row: int) -> Iterator[Piece]:
    first = int(self._row_ends[row - 1]) if row else 0
    yield from self._pieces[first:int(self._row_ends[row])].tolist()


def _best_fit_decreasing(lengths: list[int], seq_len: int) -> np.ndarray:
  """The row of each piece. Rows are kept by the room left in them; of equal ones the youngest is taken."""
  rows, with_room, rooms, count = [], [[] for _ in range(seq_len + 1)], [], 0
  for length in lengths:
    place = bisect.bisect_left(rooms, length)
    if place < len(rooms):
      room = rooms[place]
      row = with_room[room].pop()
      if not with_room[room]:
        del rooms[place]
    else:
      room, row, count = seq_len, count, count + 1
    left = room - length
    if left:
      if not with_room[left]:
        bisect.insort(rooms, left)
      with_room[left].append(row)
    rows.append(row)
  return np.array(rows, np.int64)


def assemble(pieces: Iterable[tuple[np.ndarray, np.ndarray | None, int]], seq_len: int,
             eot: int) -> dict[str, np.ndarray]:
  """A row [seq_len] of pieces (ids, counts, length), then padding.

  `length` of the ids are inputs, and one more is there where a target follows. counts: which ids are targets; None:
  all.
  """
  tokens, targets, positions, segments = (np.zeros(seq_len, np.int32) for _ in range(4))
  weights, at = np.zeros(seq_len, np.float32), 0
  for segment, (ids, counts, length) in enumerate(pieces, 1):
    end, predicted = at + length, len(ids) - 1
    tokens[at:end] = ids[:length]
    targets[at:at + predicted] = ids[1:]
    targets[at + predicted:end] = eot  # a document's last token predicts nothing
    weights[at:at + predicted] = 1 if counts is None else counts[1:]
    positions[at:end] = np.arange(length)
    segments[at:end] = segment
    at = end
  return {'tokens': tokens, 'targets': targets, 'weights': weights, 'positions': positions, 'segment_ids': segments}
