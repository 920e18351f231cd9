"""Rows of several documents, for tests that compare a mesh with one device."""
import numpy as np

from llm_jax.batch import LanguageModelBatch


def packed_batch(rows: int, time: int, vocab: int, is_whole: bool = False) -> LanguageModelBatch:
  """Up to three documents a row, which end anywhere, then padding: no two rows are alike.

  is_whole: one document fills the row.
  """
  random = np.random.default_rng(0)
  ids = random.integers(0, vocab, (rows, time + 1)).astype(np.int32)
  segments = np.ones((rows, time), np.int32)
  if not is_whole:
    ends = np.sort(random.integers(1, time, (rows, 3)))
    segments = ((1 + (np.arange(time) >= ends[:, :, None]).sum(1)) % 4).astype(np.int32)
  positions = np.stack([np.arange(time) - np.searchsorted(np.r_[row[row > 0], [9] * (row == 0).sum()], row)
                        for row in segments]).astype(np.int32)
  weights = ((segments > 0) & (random.random((rows, time)) < 0.8)).astype(np.float32)
  return LanguageModelBatch(ids[:, :-1], ids[:, 1:], weights, positions, segments)
