"""Ids that a teacher has drawn for the targets of rows, on disk, so that no step needs the teacher.

A store is a folder named by its fingerprint (rows, teacher, number of ids) under the cache folder:
  000000.npy      uint16 or uint32 [rows, seq_len, ids], a part; the last one may have rows that nobody reads
  manifest.json   what the ids were made of and how many parts there are, written last
A process that finds parts without a manifest goes on after them.
"""
import dataclasses
import functools
import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from llm_jax.data import fingerprints
from llm_jax.runtime.files import write_atomic

FORMAT = 1  # raise it when equal settings give other ids
MANIFEST = 'manifest.json'


@dataclasses.dataclass(frozen=True)
class TeacherIdStore:
  """The ids of the distinct rows that a stage reads.

  made_of: what decides them, as JSON values.
  places: (source, row of that source) -> its place in the store.
  rows_at_once: of a part.
  """
  folder: pathlib.Path
  made_of: Mapping[str, Any]
  places: Mapping[tuple[int, int], int]
  rows_at_once: int
  seq_len: int
  count: int

  @property
  def fingerprint(self) -> str:
    return self.folder.name

  @property
  def num_parts(self) -> int:
    return -(-len(self.places) // self.rows_at_once)

  def of(self, source: int, row: int) -> np.ndarray:
    """int32 [seq_len, count]."""
    part, place = divmod(self.places[source, row], self.rows_at_once)
    return self._part(part)[place].astype(np.int32)

  @property
  def padding(self) -> np.ndarray:
    return np.zeros((self.seq_len, self.count), np.int32)

  # -------------------------------------------------------------------------------------------- on disk
  def is_whole(self) -> bool:
    return (self.folder / MANIFEST).exists()

  def missing(self) -> list[int]:
    """Parts that are still to be made."""
    return [part for part in range(self.num_parts) if not self._path(part).exists()]

  def write(self, part: int, ids: np.ndarray, vocab_size: int) -> None:
    """ids: int [rows_at_once, seq_len, count]."""
    self.folder.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    np.save(file, ids.astype(np.uint16 if vocab_size <= 2**16 else np.uint32))
    write_atomic(self._path(part), file.getvalue())

  def finish(self) -> None:
    write_atomic(self.folder / MANIFEST, json.dumps({**self.made_of, 'parts': self.num_parts}, indent=2) + '\n')

  def _path(self, part: int) -> pathlib.Path:
    return self.folder / f'{part:06}.npy'

  def _part(self, part: int) -> np.ndarray:
    return _opened(str(self._path(part)))


@functools.lru_cache(maxsize=256)
def _opened(path: str) -> np.ndarray:
  return np.load(path, mmap_mode='r', allow_pickle=False)


def store_of(made_of: Mapping[str, Any], places: Mapping[tuple[int, int], int], rows_at_once: int, seq_len: int,
             count: int) -> TeacherIdStore:
  """The store in the cache folder, which may hold nothing of it yet."""
  name = fingerprints.of({**made_of, 'format': FORMAT, 'rows_at_once': rows_at_once})[:32]
  return TeacherIdStore(fingerprints.cache_folder(None) / 'teacher_ids' / name, made_of, places, rows_at_once, seq_len,
                        count)
