"""`manifest.json`: the sha256 of every file in a folder, with metadata, and a checksum of itself.

A folder is believed only when exactly these files are there with exactly these bytes. Nothing is unpickled.
"""
import concurrent.futures
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm_jax.runtime.buckets import BucketPath
from llm_jax.runtime.errors import CheckpointError
from llm_jax.runtime.files import sync_folder, write_atomic
from llm_jax.runtime.trees import Tree, for_each, read_tree

NAME = 'manifest.json'
_CHUNK = 1 << 20
_THREADS = 8  # hashing releases the GIL, so this is bounded by the disk or by the cores


@dataclasses.dataclass(frozen=True)
class FileEntry:
  """What the manifest states of a file.   sha256: hex."""
  num_bytes: int
  sha256: str

  def to_json(self) -> list[Any]:
    return [self.num_bytes, self.sha256]

  @classmethod
  def from_json(cls, entry: list[Any]) -> 'FileEntry':
    num_bytes, sha256 = entry
    return cls(num_bytes, sha256)


@dataclasses.dataclass(frozen=True)
class Manifest:
  """metadata: what the writer stated, JSON values.   files: by path relative to the folder."""
  metadata: dict[str, Any]
  files: dict[str, FileEntry]


def read_entries(folder: Path, names: Sequence[str], durable: bool = False) -> list[FileEntry]:
  """What the files hold now.   durable: also makes them survive a power cut."""
  def read(name: str) -> FileEntry:
    return _read_entry(folder / name, durable)

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    return list(pool.map(read, names))


def _read_entry(path: Path, durable: bool) -> FileEntry:
  digest = hashlib.sha256()
  num_bytes = 0
  try:
    if isinstance(path, BucketPath):
      content = path.read_bytes()
      return FileEntry(len(content), hashlib.sha256(content).hexdigest())
    with open(path, 'rb') as file:
      while chunk := file.read(_CHUNK):
        digest.update(chunk)
        num_bytes += len(chunk)
      if durable:
        os.fsync(file.fileno())
  except OSError as error:
    raise CheckpointError(f'{path}: cannot be read ({error.strerror})') from error
  return FileEntry(num_bytes, digest.hexdigest())


ReadEntries = Callable[[Path, Sequence[str], bool], list[FileEntry]]  # `read_entries`, or what asks others


def write_manifest(folder: Path, metadata: dict[str, Any], read: ReadEntries = read_entries) -> None:
  """Hashes every file under `folder`, makes them durable, then writes the manifest atomically.

  metadata: JSON values.   read: what hashes the files and makes them durable.
  """
  tree = read_tree(folder)
  names = _file_names(tree)
  entries = read(folder, names, True)
  for_each(lambda name: sync_folder(folder / name), tree.folders)
  files = {name: entry.to_json() for name, entry in zip(names, entries, strict=True)}
  write_atomic(folder / NAME, _encode({'metadata': metadata, 'files': files}))


def read_manifest(folder: Path) -> Manifest:
  """The manifest alone, its own checksum verified, the files not.

  Raises:
    CheckpointError: it is missing, not byte for byte what was written, or of a version before 0.2.
  """
  path = folder / NAME
  try:
    raw = path.read_bytes()
  except OSError as error:
    raise CheckpointError(f'{path}: cannot be read ({error.strerror})') from error
  try:
    body = json.loads(raw)
    body.pop('sha256')
    # Comparing with a fresh encoding leaves no byte unchecked: not white space, not the case of a digit.
    if raw != _encode(body):
      raise ValueError('its checksum does not match')
    if 'facts' in body:
      raise CheckpointError(f'{path}: written by llm_jax 0.1: read it with that version, or train in another workdir')
    files = {name: FileEntry.from_json(entry) for name, entry in body['files'].items()}
    return Manifest(body['metadata'], files)
  except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
    raise CheckpointError(f'{path}: damaged ({type(error).__name__}: {error})') from error


def verify(folder: Path, read: ReadEntries = read_entries) -> Manifest:
  """Reads the manifest and compares every file with it.   read: what hashes the files.

  Raises:
    CheckpointError: naming the first file that is missing, unknown to the manifest, of another size, or changed.
  """
  manifest = read_manifest(folder)
  found = set(_file_names(read_tree(folder)))
  for name in sorted(manifest.files.keys() - found):
    raise CheckpointError(f'{folder / name}: missing')
  for name in sorted(found - manifest.files.keys()):
    raise CheckpointError(f'{folder / name}: not listed in {NAME}')
  names = sorted(manifest.files)
  # Before any file is read: a size is known at once, but for that of an object in a bucket.
  sized = [] if isinstance(folder, BucketPath) else names
  for name, num_bytes in zip(sized, for_each(lambda name: (folder / name).stat().st_size, sized), strict=True):
    listed = manifest.files[name].num_bytes
    if num_bytes != listed:
      raise CheckpointError(f'{folder / name}: has {num_bytes} bytes, {NAME} says {listed}')
  for name, entry in zip(names, read(folder, names, False), strict=True):
    if entry != manifest.files[name]:
      raise CheckpointError(f'{folder / name}: changed since it was written (its sha256 differs from {NAME})')
  return manifest


def _file_names(tree: Tree) -> list[str]:
  """Relative paths of everything but folders and the manifest, sorted. A link counts, wherever it leads."""
  return [name for name in tree.files if name != NAME]


def _encode(body: dict[str, Any]) -> bytes:
  """The only way in which a manifest is written, with the checksum of itself."""
  checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
  return json.dumps({**body, 'sha256': checksum}, sort_keys=True, indent=1).encode()
