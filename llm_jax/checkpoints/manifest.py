"""`manifest.json`: the sha256 of every file in a folder, with metadata, and a checksum of itself.

A folder is believed only when exactly these files are there with exactly these bytes. Nothing is unpickled.
"""
import concurrent.futures
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from llm_jax.runtime.errors import CheckpointError
from llm_jax.runtime.files import sync_folder, write_atomic

NAME = 'manifest.json'
_CHUNK = 1 << 20
_THREADS = 8  # hashing releases the GIL, so this is bounded by the disk or by the cores


@dataclasses.dataclass(frozen=True)
class Manifest:
  """metadata: what the writer stated.  files: relative path -> [bytes, sha256]."""
  metadata: dict[str, Any]
  files: dict[str, list[Any]]


def write_manifest(folder: Path, metadata: dict[str, Any]) -> None:
  """Hashes every file under `folder`, makes them durable, then writes the manifest atomically.

  metadata: JSON values.
  """
  folder = Path(folder)
  names = _names(folder)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    entries = pool.map(lambda name: _entry(folder / name, durable=True), names)
    files = dict(zip(names, entries, strict=True))
  for inner in (path for path in folder.rglob('*') if path.is_dir()):
    sync_folder(inner)
  write_atomic(folder / NAME, _encode({'metadata': metadata, 'files': files}))


def read_manifest(folder: Path) -> Manifest:
  """The manifest alone, its own checksum verified, the files not.

  Raises:
    CheckpointError: when it is missing or not byte for byte what was written.
  """
  path = Path(folder) / NAME
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
    return Manifest(body['metadata'], body['files'])
  except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
    raise CheckpointError(f'{path}: damaged ({type(error).__name__}: {error})') from error


def verify(folder: Path) -> Manifest:
  """Reads the manifest and compares every file with it.

  Raises:
    CheckpointError: naming the first file that is missing, unknown to the manifest, of another size, or changed.
  """
  folder = Path(folder)
  manifest = read_manifest(folder)
  found = set(_names(folder))
  for name in sorted(manifest.files.keys() - found):
    raise CheckpointError(f'{folder / name}: missing')
  for name in sorted(found - manifest.files.keys()):
    raise CheckpointError(f'{folder / name}: not listed in {NAME}')
  names = sorted(manifest.files)
  for name in names:
    size, listed = (folder / name).stat().st_size, manifest.files[name][0]
    if size != listed:
      raise CheckpointError(f'{folder / name}: has {size} bytes, {NAME} says {listed}')
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for name, entry in zip(names, pool.map(lambda name: _entry(folder / name), names), strict=True):
      if entry != manifest.files[name]:
        raise CheckpointError(f'{folder / name}: changed since it was written (its sha256 differs from {NAME})')
  return manifest


def _names(folder: Path) -> list[str]:
  """Relative paths of everything but folders and the manifest, sorted."""
  paths = (path for path in folder.rglob('*') if path.is_symlink() or not path.is_dir())
  return sorted(name for path in paths if (name := path.relative_to(folder).as_posix()) != NAME)


def _entry(path: Path, durable: bool = False) -> list[Any]:
  """[bytes, sha256] of a file."""
  digest, size = hashlib.sha256(), 0
  try:
    with open(path, 'rb') as file:
      while chunk := file.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
      if durable:
        os.fsync(file.fileno())
  except OSError as error:
    raise CheckpointError(f'{path}: cannot be read ({error.strerror})') from error
  return [size, digest.hexdigest()]


def _encode(body: dict[str, Any]) -> bytes:
  """The one way that the metadata and the files are written, with the checksum of itself."""
  checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
  return json.dumps({**body, 'sha256': checksum}, sort_keys=True, indent=1).encode()
