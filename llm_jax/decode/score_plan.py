"""In which batches continuations are scored: equal texts are read once, and so is what the texts of a batch begin with.
"""
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llm_jax.config.model.architecture import Architecture
from llm_jax.decode.request import Ids, bucket, common_beginning


class Wanted(NamedTuple):
  """One request as a part of a row.

  request: its number.
  first: the place in the row behind which the continuation begins.
  targets: the continuation.
  """
  request: int
  first: int
  targets: Ids


class Row(NamedTuple):
  """A text that the model reads, and the continuations that are scored in it.

  ids: the context and the continuation without its last token, which nothing follows.
  wanted: several where they differ in the last token alone, as the letters of a question do.
  """
  ids: Ids
  wanted: tuple[Wanted, ...]

  @property
  def first(self) -> int:
    """The first place at which anything is scored."""
    return min(wanted.first for wanted in self.wanted)

  @property
  def count(self) -> int:
    """How many tokens are scored."""
    return sum(len(wanted.targets) for wanted in self.wanted)


class Batch(NamedTuple):
  """Rows that are read together.

  prefixes: beginnings, each read once; none where all rows are read whole.
  prefix_of: by row, which of them it goes on from.
  prefix_length, suffix_length: of the arrays that hold the beginnings, and the rest of each row.
  """
  rows: tuple[Row, ...]
  prefixes: tuple[Ids, ...]
  prefix_of: tuple[int, ...]
  prefix_length: int
  suffix_length: int

  @property
  def tokens(self) -> int:
    """How many tokens the model reads for it, padding included."""
    return len(self.prefixes) * self.prefix_length + len(self.rows) * self.suffix_length

  def start(self, row: int) -> int:
    """How many tokens of a row are in its prefix."""
    return len(self.prefixes[self.prefix_of[row]]) if self.prefixes else 0


def make_rows(contexts: Sequence[Ids], continuations: Sequence[Ids]) -> list[Row]:
  """One row for each text that differs from all others."""
  wanted: dict[Ids, list[Wanted]] = {}
  for request, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
    ids = context + continuation[:-1]
    wanted.setdefault(ids, []).append(Wanted(request, len(context) - 1, continuation))
  return [Row(ids, tuple(of_row)) for ids, of_row in wanted.items()]


def make_batches(config: Architecture, rows: Sequence[Row], batch_size: int, share_prefixes: bool) -> Iterator[Batch]:
  """All rows, the longest contexts first and those of one context side by side.

  The rows of a batch go by one decoder (`Architecture.at_length`).
  """
  by_decoder: dict[Architecture, list[Row]] = {}
  for row in rows:
    by_decoder.setdefault(config.at_length(len(row.ids)), []).append(row)
  for of_decoder in by_decoder.values():
    ordered = sorted(of_decoder, key=lambda row: (-row.first, row.ids[:row.first], len(row.ids), row.ids))
    for start in range(0, len(ordered), batch_size):
      yield make_batch(ordered[start:start + batch_size], share_prefixes)


def make_batch(rows: Sequence[Row], share_prefixes: bool) -> Batch:
  """The rows with the prefixes that leave the fewest tokens to read."""
  whole = Batch(tuple(rows), (), (), 0, bucket(max(len(row.ids) for row in rows)))
  if not share_prefixes:
    return whole
  common = common_beginning([row.ids[:row.first] for row in rows])
  candidates = [whole]
  for beginnings in ([common] * len(rows), [row.ids[:row.first] for row in rows]):
    if min(map(len, beginnings)) > 0:
      candidates.append(_behind(rows, beginnings))
  return min(candidates, key=lambda batch: batch.tokens)


def _behind(rows: Sequence[Row], beginnings: Sequence[Ids]) -> Batch:
  """The rows behind these beginnings, one for each row. Their number is rounded up to a power of two, so that another
  number seldom compiles a new program."""
  distinct = list(dict.fromkeys(beginnings))
  count = 2 ** math.ceil(math.log2(len(distinct)))
  prefixes = distinct + [distinct[-1]] * (count - len(distinct))
  rest = max(len(row.ids) - len(beginning) for row, beginning in zip(rows, beginnings, strict=True))
  places = tuple(distinct.index(beginning) for beginning in beginnings)
  return Batch(tuple(rows), tuple(prefixes), places, bucket(max(map(len, distinct))), bucket(rest))
