"""Names for content: sha256 of files and of plain values, and the split of documents by hash."""
import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Generator, Mapping
from typing import Any

from llm_jax.config.places import CACHE, check_is_path
from llm_jax.runtime.files import hold_lock, write_atomic

# A file whose status changed less than this long ago may change again within the clock's grain: its hash is not kept.
SETTLED_SECONDS = 2.0
LARGE_BYTES = 1 << 20  # smaller files are hashed as fast as their hash is looked up


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
  """`cache_dir`, else $LLM_JAX_CACHE, else ~/.cache/llm_jax.   Raises ConfigError where the variable holds a URL."""
  check_is_path(CACHE, os.environ.get(CACHE, ''))
  return pathlib.Path(cache_dir or os.environ.get(CACHE) or pathlib.Path.home() / '.cache' / 'llm_jax')


def of(value: Any) -> str:
  """sha256 (hex) of a JSON value, independent of the order of its keys."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def unit_interval(key: str) -> float:
  """A number in [0, 1) that depends on nothing but `key`."""
  return int.from_bytes(hashlib.sha256(key.encode('utf-8', 'surrogateescape')).digest()[:8], 'big') / 2**64


def of_file(path: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None) -> str:
  """sha256 (hex) of a file's content.

  The hash is remembered under the cache folder together with the file's inode, size, modification and change time, all
  of which hosts that mount one file system see alike; its device number they do not. The change time cannot be set by a
  program, so an edited file is hashed anew whatever its dates say.
  """
  path = os.path.abspath(path)
  record = cache_folder(cache_dir) / 'hashes' / f'{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json'
  before = os.stat(path)
  status = [before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns]
  remembered = _remembered(record, status)
  if remembered is not None:
    return remembered
  changed_at = max(before.st_mtime_ns, before.st_ctime_ns) / 1e9
  is_kept = time.time() - changed_at > SETTLED_SECONDS and before.st_size > LARGE_BYTES
  if not is_kept:
    return _hash(path)
  with _one_at_a_time(record):
    remembered = _remembered(record, status)  # another process, or another host, may have hashed it meanwhile
    if remembered is not None:
      return remembered
    digest = _hash(path)
    _remember(record, status, digest)
  return digest


def _hash(path: str) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


@contextlib.contextmanager
def _one_at_a_time(record: pathlib.Path) -> Generator[None, None, None]:
  """Waits until no other process hashes the file of this record: all hosts of a run would read it at once."""
  with contextlib.ExitStack() as stack:
    with contextlib.suppress(OSError):  # a cache that is read-only, or has no locks, costs time
      record.parent.mkdir(parents=True, exist_ok=True)
      stack.enter_context(hold_lock(record.with_suffix('.lock')))
    yield


def _remembered(record: pathlib.Path, status: list[int]) -> str | None:
  """The hash of a file that had this status; None where it is not known."""
  try:
    remembered = json.loads(record.read_bytes())
    is_whole = remembered['check'] == of([remembered['status'], remembered['sha256']])
    return remembered['sha256'] if is_whole and remembered['status'] == status else None
  except (OSError, ValueError, KeyError, TypeError):  # never written, or damaged
    return None


def _remember(record: pathlib.Path, status: list[int], digest: str) -> None:
  content = json.dumps({'status': status, 'sha256': digest, 'check': of([status, digest])})
  try:
    record.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(record, content, durable=False)  # one that is lost is computed again
  except OSError:
    pass  # a read-only cache costs time, not correctness


def of_files(paths: Mapping[str, pathlib.Path], cache_dir: str | os.PathLike[str] | None = None) -> str:
  """sha256 (hex) over the names and contents of files, given as {name: path}."""
  return of_digests(of_each_file(paths, cache_dir))


def of_digests(digests: Mapping[str, str]) -> str:
  """`of_files`, of files whose sha256 are known by name."""
  return of(sorted(digests.items()))


def of_each_file(paths: Mapping[str, pathlib.Path], cache_dir: str | os.PathLike[str] | None = None
                 ) -> dict[str, str]:
  """sha256 (hex) of the content of each file, given as {name: path}."""
  def digest(path: pathlib.Path) -> str:
    return of_file(path, cache_dir)

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    digests = list(pool.map(digest, paths.values()))
  return dict(zip(paths, digests, strict=True))
