"""What packings look up: the line of documents in their order, and the plan of best fit."""
import bisect
from collections.abc import Iterator, Sequence

import numpy as np

from llm_jax.data.made_once import AnyArray, Arrays, Ascending, lasts_of, made_once, narrowed
from llm_jax.data.token_store import TokenStore


class Line:
  """The documents of a store one behind the other, in the order of a seed.

  order: the number of each document; None: as they are stored.
  ends: where each ends, in tokens.
  Twelve bytes a document on disk, for all sequence lengths, and none in memory.
  """

  def __init__(self, order: AnyArray | None, ends: Ascending):
    self.order = order
    self.ends = ends

  def documents_of(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The documents that have tokens from `start` to before `stop`: number, and where in the line each begins and
    ends."""
    first, last = self.ends.place_after(start), self.ends.place_after(stop - 1)
    bounds = [0] if first == 0 else []
    bounds += self.ends.numbers[max(0, first - 1):last + 1].tolist()
    documents = range(first, last + 1) if self.order is None else self.order[first:last + 1].tolist()
    yield from zip(documents, bounds[:-1], bounds[1:], strict=True)

  def start(self, place: int) -> int:
    """Where the document at this place begins."""
    return self.ends[place - 1] if place else 0

  def inputs_before(self, place: int) -> int:
    """Tokens before this place that predict one: a document's last token predicts nothing."""
    return self.start(place) - place

  def place_of_inputs(self, inputs: int) -> int:
    """The first place with so many inputs before it; one behind the last place where there is none."""
    return bisect.bisect_left(range(len(self.ends) + 1), inputs, key=self.inputs_before)


def open_line(store: TokenStore, seed: int | None) -> Line:
  def make() -> Arrays:
    order = document_order(store.num_documents, seed)
    ends = np.cumsum(np.diff(store.offsets)[order])
    arrays: dict[str, AnyArray] = {'ends': ends, 'lasts': lasts_of(ends)}
    if seed is not None:
      arrays['order'] = narrowed(order)
    return Arrays(arrays)

  found = made_once('line', {'store': store.fingerprint, 'seed': seed}, store.num_documents, make, store.cache_dir)
  return Line(found.arrays.get('order'), Ascending(found.arrays['ends'], found.arrays['lasts']))


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


def open_plan(store: TokenStore, seq_len: int, seed: int | None, window: slice) -> Arrays:
  """The pieces of documents by rows, as best-fit decreasing packs them.

  Arrays documents, starts, lengths: of each piece, see `pieces.Piece`, those of a row together. row_ends: where each
  row ends among them. Numbers num_rows and num_cut.
  """
  def make() -> Arrays:
    order = document_order(store.num_documents, seed)[window]
    offsets = np.asarray(store.offsets)
    inputs = offsets[order + 1] - offsets[order] - 1  # the last token of a document predicts nothing
    documents, starts, lengths = _cut(order, inputs, seq_len)
    num_cut = int((inputs > seq_len).sum())
    longest_first = np.argsort(narrowed(seq_len - lengths), kind='stable')  # NumPy sorts two bytes in one pass each
    rows = best_fit_decreasing(lengths[longest_first], seq_len)
    by_row = longest_first[np.argsort(rows, kind='stable')]
    row_ends = np.cumsum(np.bincount(rows))
    return Arrays({
      'documents': narrowed(documents[by_row]), 'starts': narrowed(starts[by_row]),
      'lengths': narrowed(lengths[by_row]), 'row_ends': row_ends,
    }, {'num_rows': len(row_ends), 'num_cut': num_cut})

  first, stop, _ = window.indices(store.num_documents)
  depends_on = {'store': store.fingerprint, 'seed': seed, 'seq_len': seq_len, 'window': [first, stop]}
  return made_once('best_fit', depends_on, stop - first, make, store.cache_dir)


def _cut(documents: np.ndarray, inputs: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Document, start and length of every piece, int64: documents of `inputs` tokens, cut every `seq_len` of them."""
  counts = -(-inputs // seq_len)  # pieces of each document
  first_pieces = np.cumsum(counts) - counts
  starts = (np.arange(counts.sum()) - np.repeat(first_pieces, counts)) * seq_len
  lengths = np.minimum(np.repeat(inputs, counts) - starts, seq_len)
  return np.repeat(documents, counts), starts, lengths


def best_fit_decreasing(lengths: Sequence[int] | np.ndarray, seq_len: int) -> np.ndarray:
  """int64 [pieces]: the row of each piece, which come longest first, each of 1 to `seq_len` tokens. A piece goes to the
  row with the least room that is enough; of rows with equally little room the youngest is taken.

  Pieces of one length are placed together: they fill the rows of the least room that is enough, one row after the
  other, then those of the next. So the work is one of lengths and rooms, of which there are `seq_len`, and not of
  pieces.
  """
  pieces = np.asarray(lengths, np.int64)
  found = np.empty(len(pieces), np.int64)
  rows_by_room: dict[int, list[np.ndarray]] = {}  # the youngest last
  rooms: list[int] = []  # those that any row has, the least first
  num_rows = 0
  changes = np.flatnonzero(np.diff(pieces)) + 1
  for place, end in zip([0, *changes.tolist()], [*changes.tolist(), len(pieces)], strict=True):
    if place == end:  # there are no pieces at all
      break
    length = int(pieces[place])
    while place < end:
      at = bisect.bisect_left(rooms, length)
      room = rooms[at] if at < len(rooms) else seq_len
      each = room // length  # pieces that a row takes
      wanted = -(-(end - place) // each)
      if at < len(rooms):
        rows = _pop(rows_by_room[room], wanted)
        if not rows_by_room[room]:
          del rooms[at], rows_by_room[room]
      else:
        rows = np.arange(num_rows, num_rows + wanted)
        num_rows += wanted
      filled = np.repeat(rows, each)[:end - place]
      found[place:place + len(filled)] = filled
      place += len(filled)
      of_last = len(filled) - (len(rows) - 1) * each
      for some, count in ((rows[:-1], each), (rows[-1:], of_last)):
        left = room - count * length
        if left and len(some):
          if left not in rows_by_room:
            rows_by_room[left] = []
            bisect.insort(rooms, left)
          rows_by_room[left].append(some)
  return found


def _pop(stack: list[np.ndarray], count: int) -> np.ndarray:
  """Takes up to `count` from the end, the last one first."""
  taken: list[np.ndarray] = []
  while stack and count:
    top = stack.pop()
    if len(top) > count:
      stack.append(top[:-count])
      top = top[-count:]
    taken.append(top[::-1])
    count -= len(top)
  return np.concatenate(taken)
