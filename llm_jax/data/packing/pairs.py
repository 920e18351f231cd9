"""Pairs of answers to rows: one pair a row, each side a document of its own, padded to the sequence length."""
from collections.abc import Iterator

import numpy as np

from llm_jax.config.errors import require
from llm_jax.data.packing.text import assemble
from llm_jax.data.token_store import TokenStore

Row = dict[str, dict[str, np.ndarray]]


class PairRows:
  """Rows of a store of preferences: `rows[i]` is {'chosen', 'rejected'}, each the fields of LanguageModelBatch.

  What does not fit into `seq_len` inputs and the target after them is cut off at the end, and a pair whose prompt
  leaves no room for a token of the answer is left out: what trl's DPOTrainer does with max_length = seq_len + 1. So is
  one whose answers are equal as far as they fit: it says nothing of either.
  num_targets: those of weight 1 in all rows. num_cut: pairs of which a side is cut. num_left_out: pairs left out for
  their prompt; num_equal: those left out for their answers.
  """

  def __init__(self, store: TokenStore, seq_len: int, eot: int):
    self.store, self._context, self._eot = store, seq_len, eot
    first, last = store.offsets[:-1].reshape(-1, 2), store.offsets[1:].reshape(-1, 2)  # [pairs, side]
    answers = [np.argmax(store.counts[a:b]) for a, b in zip(first.flat, last.flat, strict=True)]
    fits = (np.reshape(answers, first.shape) <= seq_len).all(axis=1)
    require(bool(fits.any()), 'seq_len', seq_len, f'no answer begins within it in any of {len(fits)} pairs: raise it')
    cut = np.minimum(last, first + seq_len + 1)
    equal = fits & (cut < last).any(axis=1)  # of those that are whole, none is
    for pair in np.flatnonzero(equal):
      chosen, rejected = (store.tokens[a:b] for a, b in zip(first[pair], cut[pair], strict=True))
      equal[pair] = np.array_equal(chosen, rejected)
    require(bool((fits & ~equal).any()), 'seq_len', seq_len, 'within it all pairs of answers are equal: raise it')
    self.num_left_out, self.num_equal, fits = int((~fits).sum()), int(equal.sum()), fits & ~equal
    self._first, self._last = first[fits], cut[fits]
    self.num_cut = int((self._last < last[fits]).any(axis=1).sum())
    self.num_targets = sum(int(store.counts[a:b].sum()) for a, b in zip(self._first.flat, self._last.flat, strict=True))

  def __len__(self) -> int:
    return len(self._first)

  def __getitem__(self, row: int) -> Row:
    sides = (assemble([(self.store.tokens[part], self.store.counts[part], part.stop - part.start - 1)], self._context,
                      self._eot) for part in self._parts(row))
    return dict(zip(('chosen', 'rejected'), sides, strict=True))

  def documents(self, row: int) -> Iterator[np.ndarray]:
    """The ids of both sides."""
    return (self.store.tokens[part] for part in self._parts(row))

  def _parts(self, row: int) -> Iterator[slice]:
    return (slice(int(a), int(b)) for a, b in zip(self._first[row], self._last[row], strict=True))
