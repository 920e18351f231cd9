"""Texts as vectors, by a package that brings its weights along."""
import functools
import hashlib
import importlib.metadata
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from llm_jax.config.errors import require
from llm_jax.config.packages import is_installed


class Embedder(Protocol):
  """Turns texts into vectors.

  name: as a command line has it.
  fingerprint: of all that decides the vectors.
  """
  @property
  def name(self) -> str: ...

  @property
  def fingerprint(self) -> str: ...

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """float32 [texts, width]."""
    ...


class WordLlama:
  """Means of token vectors of width 256, out of the package `wordllama`, whose wheel has them (19 MB).

  Raises:
    ConfigError: the package is not installed.
  """
  name = 'wordllama'

  def __init__(self):
    require(is_installed('wordllama'), '--embed', self.name, "is not installed: pip install 'llm_jax[retrieve]'")

  @property
  def fingerprint(self) -> str:
    version = importlib.metadata.version('wordllama')
    return hashlib.sha256(f'{self.name} {version}'.encode()).hexdigest()

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    return np.asarray(self._model.embed(list(texts)), np.float32)

  @functools.cached_property
  def _model(self) -> Any:
    import wordllama
    # Told where its own files are, and not to fetch any: left alone it looks for them elsewhere.
    folder = pathlib.Path(wordllama.__file__).parent
    return wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
