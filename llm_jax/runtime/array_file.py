"""A file of numbers, read piece by piece.

A mapped file would be quicker by a system call, but one that is cut short under a running program ends that with
SIGBUS; here it is an error that names the file.
"""
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.runtime.errors import FileError

CHUNK = 1 << 22  # numbers that are read at once where all are


class ArrayFile:
  """A one-dimensional array in a raw file; slices, single numbers and arrays of places are read when
  they are asked for.

  Raises (where numbers are read):
    FileError: the file no longer holds them.
  """

  def __init__(self, path: Path, dtype: np.dtype):
    self.path = path
    self.dtype = dtype
    self._descriptor = os.open(path, os.O_RDONLY)
    weakref.finalize(self, os.close, self._descriptor)
    self._length = os.fstat(self._descriptor).st_size // dtype.itemsize

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, places: Any) -> Any:
    if isinstance(places, slice):
      start, end, step = places.indices(self._length)
      if step != 1:
        raise IndexError(f'{self.path}: a slice of it has no step')
      return self._read(start, max(start, end))
    indices = np.asarray(places)
    if indices.dtype == bool:
      indices = np.flatnonzero(indices)
    numbers = [self._read(int(i), int(i) + 1)[0] for i in np.where(indices < 0, indices + self._length, indices).flat]
    found = np.array(numbers, self.dtype).reshape(indices.shape)
    return found if indices.ndim else found[()]

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return np.asarray(self[:], dtype)

  def chunks(self) -> Iterator[np.ndarray]:
    """All numbers, CHUNK at a time."""
    for start in range(0, self._length, CHUNK):
      yield self[start:start + CHUNK]

  def sum(self, dtype: Any = None) -> Any:
    return sum((chunk.sum(dtype=dtype) for chunk in self.chunks()), start=0)

  def _read(self, start: int, end: int) -> np.ndarray:
    """Numbers `start` to `end`."""
    size = self.dtype.itemsize
    return read_bytes(self.path, self._descriptor, start * size, end * size, self._length * size).view(self.dtype)


def read_bytes(path: Path, descriptor: int, start: int, end: int, file_size: int) -> np.ndarray:
  """Bytes `start` to `end` of an opened file, uint8.

  path: of the file, for errors.   file_size: in bytes, as it was when the file was opened.

  Raises: FileError: the file no longer holds them, or the disk does not give them.
  """
  content = np.empty(end - start, np.uint8)
  view = content.data
  position = start
  while view:  # a system call reads 2 GiB at most
    try:
      count = os.preadv(descriptor, [view], position)
    except OSError as error:
      raise FileError(f'{path}: byte {position} of {file_size} cannot be read ({error.strerror})') from error
    if count == 0:
      now = os.fstat(descriptor).st_size
      raise FileError(f'{path}: ends at byte {now} of {file_size}: it was cut short while this run read it. The '
                      'same command makes a file of the cache anew; any other one has to be brought back')
    position += count
    view = view[count:]
  return content
