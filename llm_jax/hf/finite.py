"""Numbers that are NaN, infinite, or beyond what a dtype holds: found before a model is trained, sampled or written."""
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from llm_jax.config.errors import ConfigError

PIECE = 1 << 20  # numbers that are looked at in one go


def count_not_finite(array: np.ndarray) -> int:
  """How many of its numbers are NaN or infinite."""
  return sum(int(piece.size - np.count_nonzero(np.isfinite(piece))) for piece in _pieces(array))


def check_cast(name: str, source: np.ndarray, cast: np.ndarray) -> None:
  """Refuses numbers of a tensor that are none.

  Args:
    name: the tensor's, for the error.
    source: the tensor as it was.
    cast: the tensor in another dtype or another order, or a part of it.

  Raises:
    ConfigError: names the tensor and counts the numbers: those that are NaN or infinite, or those that the dtype of
      `cast` does not hold.
  """
  if not count_not_finite(cast):
    return
  bad = count_not_finite(source)
  if bad:
    raise ConfigError('tensors', f'{name}: {bad} of {source.size} numbers are NaN or infinite',
                      'the training that made them diverged, or the file is damaged: take an earlier checkpoint, or '
                      'fetch it again')
  dtype = cast.dtype
  limit = float(ml_dtypes.finfo(dtype).max)
  too_large = sum(int(np.count_nonzero(np.abs(piece.astype(np.float64)) > limit)) for piece in _pieces(source))
  largest = max(float(np.abs(piece.astype(np.float64)).max()) for piece in _pieces(source))
  what = f'{name}: {too_large} of {source.size} numbers are beyond {dtype}, the largest is {largest:g}'
  raise ConfigError('tensors', what,
                    f'{dtype} ends at {limit:g}: use {_wider(dtype)}')


def cast_checked(name: str, values: np.ndarray, dtype: Any) -> np.ndarray:
  """`values` in `dtype`.   Raises: as `check_cast`."""
  with np.errstate(over='ignore'):
    cast = values.astype(dtype)
  check_cast(name, values, cast)
  return cast


def _wider(dtype: np.dtype) -> str:
  return 'bfloat16 or float32' if dtype == np.float16 else 'float32'


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
  """The array cut along its first axis, so that what is computed of it takes little memory."""
  if array.size <= PIECE:
    if array.size:
      yield array
    return
  rows = max(1, PIECE * len(array) // array.size)
  for start in range(0, len(array), rows):
    yield array[start:start + rows]
