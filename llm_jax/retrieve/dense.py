"""Passages by the nearness of vectors, with faiss."""
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_jax.config.errors import require
from llm_jax.config.packages import is_installed
from llm_jax.retrieve.embed import Embedder


class Dense:
  """Finds the passages whose vectors point most nearly where the question's does: the largest cosine, exactly.

  The mean of the passages' vectors is taken off both before: the states of a language model share most of what they
  are, which tells no passage from another.

  Args:
    vectors: float32 [passages, width], as `embed` makes them.
    embed: makes the vectors of questions.

  Raises:
    ConfigError: faiss is not installed.
  """

  def __init__(self, vectors: np.ndarray, embed: Embedder):
    require(is_installed('faiss'), 'faiss', None, "is not installed: pip install 'llm_jax[retrieve]'")
    import faiss  # here: on macOS it must not be loaded beside torch
    self._embed = embed
    self._centre = vectors.mean(0)
    self._index: Any = faiss.IndexFlatIP(vectors.shape[1])
    self._index.add(directions(vectors, self._centre))

  def search_all(self, questions: Sequence[str], count: int) -> list[list[int]]:
    if not questions:
      return []
    wanted = directions(self._embed(questions), self._centre)
    _, places = self._index.search(wanted, min(count, self._index.ntotal))
    return places.tolist()


def directions(vectors: np.ndarray, centre: np.ndarray) -> np.ndarray:
  """float32 [vectors, width] of length 1, seen from the centre."""
  moved = vectors - centre
  lengths = np.linalg.norm(moved, axis=1, keepdims=True)
  return np.ascontiguousarray(moved / np.maximum(lengths, 1e-12), np.float32)
