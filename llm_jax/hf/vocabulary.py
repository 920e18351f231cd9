"""More or fewer rows of the embedding and the head than a model was made with."""
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llm_jax import paths
from llm_jax.config.errors import require
from llm_jax.config.model.architecture import Architecture
from llm_jax.hf.family import Family
from llm_jax.hf.mxfp4 import Tensor, UnpackedTensors
from llm_jax.hf.tensor_file import TensorFiles

TABLES = ('embedding/w', 'head/w')  # [vocab, d_model]


def resize_vocabulary(config: Architecture, params: Any, vocab_size: int) -> tuple[Architecture, Any]:
  """The model with `vocab_size` tokens. New rows of the embedding, and of the head where it is another table, are the
  mean of the old ones: what `resize_token_embeddings` of transformers gives up to its noise, which is 1e-9 of the rows'
  covariance. So a new token is at first as likely as an average one. Rows beyond a smaller vocabulary are left out.

  Returns: the new architecture and parameters. Parameters that do not change are the same arrays.
  Raises: ConfigError for a size that is none.
  """
  check_size(vocab_size)
  resized = paths.map_named(lambda path, leaf: resize_rows(leaf, vocab_size) if path in TABLES else leaf, params)
  return dataclasses.replace(config, vocab_size=vocab_size), resized


def check_size(vocab_size: int) -> None:
  require(vocab_size > 0, 'vocab_size', vocab_size, 'use a positive number of tokens')


def resize_rows(table: Tensor, rows: int) -> np.ndarray:
  """A table with `rows` rows, in its dtype: the first of the old ones, then their mean, taken in float32."""
  table = np.asarray(table)
  if rows <= len(table):
    return table[:rows]
  mean = table.mean(0, dtype=np.float32).astype(table.dtype)
  return np.concatenate([table, np.broadcast_to(mean, (rows - len(table), *mean.shape))])


class ResizedTensors(Mapping[str, Tensor]):
  """The tensors of files by name, those with a row for each token resized. A resized one is made when it is asked for.
  """

  def __init__(self, tensors: TensorFiles | UnpackedTensors, family: Family, rows: int):
    self._tensors = tensors
    self._rows = rows
    tables = [theirs for ours, theirs, _ in (*family.model, *family.copies) if ours in TABLES]
    # In a file of the decoder alone names lack the prefix, and those of copies have the number of a layer.
    self._tables = tuple(name.removeprefix(family.base_model_prefix).rpartition('{N}')[2] for name in tables)

  def __getitem__(self, name: str) -> Tensor:
    tensor = self._tensors[name]
    return resize_rows(tensor, self._rows) if name.endswith(self._tables) else tensor

  def __iter__(self) -> Iterator[str]:
    return iter(self._tensors)

  def __len__(self) -> int:
    return len(self._tensors)

  def forget(self, name: str) -> None:
    """Releases the memory that reading a tensor took. The tensor can be read again."""
    self._tensors.forget(name)
