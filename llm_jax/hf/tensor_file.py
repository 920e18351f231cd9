"""Safetensors files: checked and then read, and written, tensor by tensor.

A file is the header's length (8 bytes, little endian), the header (a JSON object: name -> dtype, shape, data_offsets)
and the tensors' bytes without gaps.
"""
import json
import math
import os
import struct
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from llm_jax.config.errors import ConfigError, require
from llm_jax.runtime.array_file import read_bytes

DTYPES = {
  'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16, 'I64': np.int64,
  'I32': np.int32, 'I16': np.int16, 'I8': np.int8, 'U64': np.uint64, 'U32': np.uint32, 'U16': np.uint16, 'U8': np.uint8,
  'BOOL': np.bool_, 'F8_E4M3': ml_dtypes.float8_e4m3fn, 'F8_E5M2': ml_dtypes.float8_e5m2,
}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000  # bytes, as in the safetensors library


class Slot(NamedTuple):
  """A tensor in a file: its bytes are [start, end)."""
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int
  end: int


def read_header(head: bytes, file_size: int, where: str) -> dict[str, Slot]:
  """The tensors of a file of `file_size` bytes that starts with `head` (at least its header).

  Raises: ConfigError that names `where` for anything that is not a complete safetensors file without gaps.
  """
  def refuse(why: str, value: Any = None) -> ConfigError:
    return ConfigError(where, value, f'not a readable safetensors file: {why}')

  length = header_length(head, file_size, where)
  try:
    header = json.loads(head[8:8 + length].decode('utf-8'), object_pairs_hook=_unique)
  except (ValueError, RecursionError) as error:
    raise refuse(f'its header is not JSON ({error})') from error
  if not isinstance(header, dict):
    raise refuse('its header is not a JSON object', header)
  metadata = header.pop('__metadata__', {})
  if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
    raise refuse('__metadata__ must hold texts', metadata)
  slots = {name: _slot(entry, lambda why, entry=entry, name=name: refuse(f'{name!r} {why}', entry))
           for name, entry in header.items()}
  end = 0
  for name, slot in sorted(slots.items(), key=lambda item: (item[1].start, item[1].end)):
    if slot.start != end:
      fault = 'overlaps another tensor' if slot.start < end else 'leaves a hole before it'
      raise refuse(f'{name!r} {fault}', slot.start)
    end = slot.end
  begin = 8 + length
  if begin + end != file_size:
    raise refuse(f'its tensors need {begin + end} bytes', file_size)
  return {name: slot._replace(start=begin + slot.start, end=begin + slot.end) for name, slot in slots.items()}


def header_length(head: bytes, file_size: int, where: str) -> int:
  """The header's length, from the first 8 bytes of a file."""
  length = int.from_bytes(head[:8], 'little')
  require(file_size >= 8 and length <= min(file_size - 8, LONGEST_HEADER), where, length,
          f'not a readable safetensors file: its header would be longer than the file of {file_size} bytes')
  return length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  keys = [key for key, _ in pairs]
  if len(set(keys)) != len(keys):
    raise ValueError(f'{next(key for key in keys if keys.count(key) > 1)!r} is there twice')
  return dict(pairs)


def _slot(entry: Any, refuse: Any) -> Slot:
  if not isinstance(entry, dict) or entry.keys() != {'dtype', 'shape', 'data_offsets'}:
    raise refuse('must have dtype, shape and data_offsets')
  dtype, shape, offsets = entry['dtype'], entry['shape'], entry['data_offsets']
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise refuse(f'has an unknown dtype, use one of {tuple(DTYPES)}')
  sizes = lambda value: isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)
  if not sizes(shape) or len(shape) > 32:
    raise refuse('has a shape that is none')
  if not sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
    raise refuse('has data_offsets that are no range')
  if math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize != offsets[1] - offsets[0]:
    raise refuse('has data_offsets that do not fit its shape and dtype')
  return Slot(np.dtype(DTYPES[dtype]), tuple(shape), *offsets)


class OpenFile:
  """A file that stays open for as long as one of its tensors is there.

  Raises: ConfigError if it is not a safetensors file.
  """

  def __init__(self, path: Path):
    self.path = path
    where = str(path)
    try:
      self._descriptor = os.open(path, os.O_RDONLY)
      weakref.finalize(self, os.close, self._descriptor)
      self._size = os.fstat(self._descriptor).st_size
      head = os.pread(self._descriptor, 8, 0)
      head += os.pread(self._descriptor, header_length(head, self._size, where), 8)
    except OSError as error:
      raise ConfigError(where, type(error).__name__, f'cannot be read ({error.strerror})') from error
    self.slots = read_header(head, self._size, where)

  def read(self, slot: Slot) -> np.ndarray:
    return read_bytes(self.path, self._descriptor, slot.start, slot.end, self._size).view(slot.dtype)


class FileTensor:
  """A tensor of a file. `np.asarray` reads it the first time, and keeps it until it is forgotten.

  Raises (where it is read): FileError: the file was cut short meanwhile, or cannot be read.
  """

  def __init__(self, file: OpenFile, slot: Slot):
    self._file = file
    self._slot = slot
    self._values: np.ndarray | None = None
    self.shape = slot.shape
    self.dtype = slot.dtype
    self.nbytes = slot.end - slot.start

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    if self._values is None:
      self._values = self._file.read(self._slot).reshape(self.shape)
      self._values.flags.writeable = False  # the next reader gets the same numbers
    return np.array(self._values, dtype, copy=copy)

  def forget(self) -> None:
    """Releases the memory that reading took. The tensor can be read again."""
    self._values = None


class TensorFiles(Mapping[str, FileTensor]):
  """The tensors of several files by name.

  Raises: ConfigError for a file that is not a safetensors file, or for a name that is in two files.
  """

  def __init__(self, files: Iterable[Path]):
    self._tensors: dict[str, FileTensor] = {}
    for path in files:
      file = OpenFile(path)
      twice = sorted(self._tensors.keys() & file.slots.keys())
      require(not twice, str(path), twice, 'these tensors are in another file too')
      self._tensors |= {name: FileTensor(file, slot) for name, slot in file.slots.items()}

  def __getitem__(self, name: str) -> FileTensor:
    return self._tensors[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._tensors)

  def __len__(self) -> int:
    return len(self._tensors)

  def forget(self, name: str) -> None:
    """Releases the memory that reading a tensor took. The tensor can be read again."""
    self._tensors[name].forget()


def write_file(file: Path, described: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
               tensors: Iterable[tuple[str, np.ndarray]]) -> None:
  """Writes the tensors, one by one. `described` states their dtypes and shapes in the same order."""
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  end = 0
  for name, (dtype, shape) in described.items():
    start, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {'dtype': NAMES[dtype], 'shape': list(shape), 'data_offsets': [start, end]}
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)
  with open(file, 'wb') as opened:
    opened.write(struct.pack('<Q', len(text)) + text)
    for (name, tensor), (wanted, described_as) in zip(tensors, described.items(), strict=True):
      assert (name, tensor.dtype, tensor.shape) == (wanted, *described_as)
      opened.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    opened.flush()
    os.fsync(opened.fileno())
