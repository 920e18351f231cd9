"""Names for content: sha256 of files and of plain values, and the split of documents by hash."""
import concurrent.futures
import hashlib
import json
import os
import pathlib
import time
from typing import Any

# A file whose status changed less than this long ago may change again within the clock's grain: its hash is not kept.
SETTLED_SECONDS = 2.0


def cache_folder(cache_dir: str | os.PathLike | None = None) -> pathlib.Path:
  """`cache_dir`, else $LLM_JAX_CACHE, else ~/.cache/llm_jax."""
  return pathlib.Path(cache_dir or os.environ.get('LLM_JAX_CACHE') or pathlib.Path.home() / '.cache' / 'llm_jax')


def of(value: Any) -> str:
  """sha256 (hex) of a JSON value, independent of the order of its keys."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def unit_interval(key: str) -> float:
  """A number in [0, 1) that depends on nothing but `key`."""
  return int.from_bytes(hashlib.sha256(key.encode('utf-8', 'surrogateescape')).digest()[:8], 'big') / 2**64


def write_atomically(path: pathlib.Path, content: bytes) -> None:
  """A reader sees the old file or the new one, never a part."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp')
  temporary.write_bytes(content)
  os.replace(temporary, path)


def of_file(path: str | os.PathLike, cache_dir: str | os.PathLike | None = None) -> str:
  """sha256 (hex) of a file's content.

  The hash is remembered under the cache folder together with the file's device, inode, size, modification and change
  time. The change time cannot be set by a program, so an edited file is hashed anew whatever its dates say.
  """
  path = os.path.abspath(path)
  record = cache_folder(cache_dir) / 'hashes' / f'{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json'
  before = os.stat(path)
  status = [before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns]
  try:
    remembered = json.loads(record.read_bytes())
    if remembered['status'] == status:
      return remembered['sha256']
  except (OSError, ValueError, KeyError, TypeError):
    pass  # not remembered, or not readable: hash it
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  newest = max(before.st_mtime_ns, before.st_ctime_ns) / 1e9
  if before.st_size > 1 << 20 and time.time() - newest > SETTLED_SECONDS:
    try:
      write_atomically(record, json.dumps({'status': status, 'sha256': digest}).encode())
    except OSError:
      pass  # a read-only cache costs time, not correctness
  return digest


def of_files(paths: dict[str, pathlib.Path], cache_dir: str | os.PathLike | None = None) -> str:
  """sha256 (hex) over the names and contents of files, given as {name: path}."""
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    digests = list(pool.map(lambda path: of_file(path, cache_dir), paths.values()))
  return of(sorted(zip(paths, digests, strict=True)))
