"""Arrays of a number or two a document, made once by one process and read from files by all.

A folder in the cache, named by the fingerprint of what the arrays depend on, has a file for each, and `meta.json`,
written last. What all of a thousand processes would hold in memory then lies once in each machine's page cache. Of few
documents the arrays are made where they are needed, and no file is written.

The files are read and not mapped, see `array_file.py`.
"""
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from llm_jax.config.errors import ConfigError
from llm_jax.data import fingerprints
from llm_jax.runtime import activity
from llm_jax.runtime.array_file import ArrayFile
from llm_jax.runtime.errors import explaining_full_disk, is_full_disk
from llm_jax.runtime.files import hold_lock

FORMAT = 1  # raise it when the meaning of the files changes
LEAST_DOCUMENTS = 100_000  # of fewer nothing is kept
BLOCK = 1_024  # numbers of a sorted file that are read at once to find one
MAKE_ROOM = 'make room, or set LLM_JAX_CACHE to a folder on another disk'

AnyArray = np.ndarray | ArrayFile
CacheDir = str | os.PathLike[str] | None


@dataclasses.dataclass(frozen=True)
class Arrays:
  """One-dimensional arrays and whole numbers, by name."""
  arrays: Mapping[str, AnyArray]
  numbers: Mapping[str, int] = dataclasses.field(default_factory=dict)


def made_once(kind: str, depends_on: Mapping[str, Any], num_documents: int, make: Callable[[], Arrays],
              cache_dir: CacheDir = None) -> Arrays:
  """What `make` makes: read from the cache, where one process has put it.

  depends_on: JSON values; with the same ones `make` makes the same.
  """
  if num_documents < LEAST_DOCUMENTS:
    return make()
  fingerprint = fingerprints.of({'format': FORMAT, 'kind': kind, **depends_on})
  folder = fingerprints.cache_folder(cache_dir) / 'packing' / fingerprint[:32]
  found = _load(folder, cache_dir)
  if found is not None:
    return found
  try:
    with only_one(folder):
      found = _load(folder, cache_dir)  # another process may have made it meanwhile
      if found is None:
        _write(folder, make())
        found = _load(folder, cache_dir)
  except ConfigError as error:  # a cache that cannot be written costs memory, not the run
    logging.warning('%s: every process makes an index of %d documents in its memory', error, num_documents)
  return make() if found is None else found


@contextlib.contextmanager
def only_one(folder: pathlib.Path) -> Iterator[None]:
  """Waits until no other process makes this folder of the cache."""
  with contextlib.ExitStack() as stack:
    stack.enter_context(explaining_full_disk(folder.parent, 'a lock file', MAKE_ROOM))
    try:
      folder.parent.mkdir(parents=True, exist_ok=True)
      with activity.waiting():
        stack.enter_context(hold_lock(folder.with_suffix('.lock')))
    except OSError as error:
      if is_full_disk(error):
        raise
      hint = f'not writable ({error.strerror}): set LLM_JAX_CACHE to a folder that is'
      raise ConfigError('cache_dir', str(folder.parent), hint) from error
    yield


def _write(folder: pathlib.Path, made: Arrays) -> None:
  arrays = {name: np.ascontiguousarray(array) for name, array in made.arrays.items()}
  building = folder.with_suffix('.building')
  size = sum(array.nbytes for array in arrays.values())
  with explaining_full_disk(building, 'an index of documents', MAKE_ROOM, size):
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    for name, array in arrays.items():
      with open(building / name, 'wb') as file:
        file.write(array.data)
        os.fsync(file.fileno())
    meta = {'numbers': dict(made.numbers), 'dtypes': {name: array.dtype.str for name, array in arrays.items()},
            'sha256': {name: fingerprints.of_file(building / name) for name in arrays}}
    with open(building / 'meta.json', 'wb') as file:
      file.write(json.dumps({'meta': meta, 'sha256': fingerprints.of(meta)}).encode())
      os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)  # a broken one
    os.replace(building, folder)


def _load(folder: pathlib.Path, cache_dir: CacheDir) -> Arrays | None:
  """What is in the folder; None where there is none, or a file of it is not as it was written."""
  try:
    saved = json.loads((folder / 'meta.json').read_bytes())
    meta = saved['meta']
    if fingerprints.of(meta) != saved['sha256']:
      raise ValueError('meta.json is damaged')
    for name, sha256 in meta['sha256'].items():
      if fingerprints.of_file(folder / name, cache_dir) != sha256:
        raise ValueError(f'file {name!r} is damaged')
    arrays = {name: ArrayFile(folder / name, np.dtype(dtype)) for name, dtype in meta['dtypes'].items()}
    return Arrays(arrays, meta['numbers'])
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    logging.warning('index %s: %r; making it again', folder, error)
    return None


def narrowed(array: np.ndarray) -> np.ndarray:
  """The same numbers, 0 or more, in the fewest bytes."""
  return array.astype(np.min_scalar_type(int(array.max(initial=0))))


class Ascending:
  """Finds places in ascending numbers as `np.searchsorted` does, in a file by reading two blocks.

  numbers: in memory or in a file.   lasts: of every BLOCK of them the last one, see `lasts_of`.
  """

  def __init__(self, numbers: AnyArray, lasts: AnyArray):
    self.numbers = numbers
    self._lasts = np.asarray(lasts)

  def __len__(self) -> int:
    return len(self.numbers)

  def __getitem__(self, place: int) -> int:
    return int(self.numbers[place])

  def place_after(self, value: int) -> int:
    """How many of the numbers are at most `value`."""
    start = int(np.searchsorted(self._lasts, value, side='right')) * BLOCK
    return start + int(np.searchsorted(self.numbers[start:start + BLOCK], value, side='right'))


def lasts_of(ascending: np.ndarray) -> np.ndarray:
  """The last of every BLOCK numbers, but for the last block, which may not be whole."""
  return ascending[BLOCK - 1::BLOCK]
