"""Folders and files in a bucket, gs://bucket/run or s3://bucket/run, with `pathlib`'s methods.

TensorStore, which writes the arrays of checkpoints, is the client: it finds credentials the platform's way, and tries a
request that fails again. A bucket has no folders but the common beginnings of its objects' names; an object is written
whole or not at all, and seen by everybody at once. What a bucket cannot do raises TypeError: renaming, locks, maps into
memory, writing at the end of a file.
"""
import concurrent.futures
import errno
import fnmatch
import functools
import io
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from llm_jax.config.errors import ConfigError, require
from llm_jax.config.places import BUCKETS, scheme_of

T = TypeVar('T')
U = TypeVar('U')

PROBE_SECONDS = 10  # that a bucket is given to answer before a run begins
THREADS = 32  # that wait for objects
BEYOND_END = ('OUT_OF_RANGE', 'Unexpected Content-Range')  # TensorStore's words for a part that is not there
RETRIES = {'max_retries': 64, 'initial_delay': '200ms', 'max_delay': '32s'}


class BucketError(OSError):
  """A request that the bucket refuses, or has not answered after many tries."""


def place(path: str | os.PathLike[str]) -> pathlib.Path:
  """What the rest of the code handles as a path: a `BucketPath` for a URL of a bucket."""
  if isinstance(path, BucketPath):
    return path
  text = os.fspath(path)
  scheme = scheme_of(text)
  return BucketPath(f'{scheme}:{text[len(scheme) + 1:]}') if scheme in BUCKETS else pathlib.Path(text)


class BucketPath(pathlib.PosixPath):
  """An object of a bucket, or all of those whose names begin with its own and a slash."""

  @property
  def _is_whole(self) -> bool:
    """Whether it is no part of a path, as `relative_to` gives them."""
    return bool(self.parts) and self.parts[0].rstrip(':') in BUCKETS

  def __str__(self) -> str:
    return f'{self.parts[0]}//{"/".join(self.parts[1:])}' if self._is_whole else '/'.join(self.parts)

  def __fspath__(self) -> str:
    if self._is_whole:
      raise TypeError(f'{self} lies in a bucket, and no file of this machine')
    return str(self)

  def __reduce__(self) -> Any:
    return type(self), (str(self),)

  def as_posix(self) -> str:
    return str(self)

  @property
  def key(self) -> str:
    return '/'.join(self.parts[2:])

  @property
  def spec(self) -> dict[str, Any]:
    """Of TensorStore's driver, for the objects below this one."""
    return {**_driver(self.parts[0].rstrip(':'), self.parts[1]), 'path': f'{self.key}/' if self.key else ''}

  @property
  def _store(self) -> Any:
    return _open(self.parts[0].rstrip(':'), self.parts[1])

  # ---------------------------------------------------------------------------------------------- reading
  def read_bytes(self) -> bytes:
    found = self._ask(self._store.read(self.key))
    if found.state != 'value':
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
    return found.value

  def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
    return self.read_bytes().decode(encoding or 'utf-8', errors or 'strict')

  def open(self, mode: str = 'r', *_: Any, **more: Any) -> Any:  # type: ignore[override]  # for reading alone
    if mode == 'rb':
      return io.BytesIO(self.read_bytes())
    if mode == 'r':
      return io.StringIO(self.read_text(more.get('encoding'), more.get('errors')))
    raise TypeError(f'{self}: an object of a bucket is only written whole')

  def generation(self) -> str | None:
    """Another one as soon as the object is written again; None where there is none."""
    found = self._part(0, 1) or self._ask(self._store.read(self.key))  # of an empty object no part can be read
    return found.stamp.generation.hex() if found.state == 'value' else None

  def chunks(self, size: int) -> Iterator[bytes]:
    """The content, some bytes at a time. Raises OSError where it is replaced meanwhile."""
    generation = self.generation()
    start = 0
    is_last = False
    while not is_last:
      is_last = self._part(start + size - 1, start + size) is None
      found = self._part(start, None if is_last else start + size)
      if found is None:  # the chunk before ended where the object does
        return
      if found.stamp.generation.hex() != generation:
        raise BucketError(errno.ESTALE, 'was replaced or deleted while it was read', str(self))
      yield found.value
      start += size

  def _part(self, start: int, stop: int | None) -> Any:
    """TensorStore's answer; None where the object ends before that."""
    try:
      return self._ask(self._store.read(self.key, byte_range=slice(start, stop)))
    except OSError as error:
      is_beyond_end = any(words in str(error.strerror) for words in BEYOND_END)
      if not is_beyond_end:
        raise
      return None

  def is_file(self) -> bool:
    return bool(self.key) and self.generation() is not None

  def is_dir(self) -> bool:
    return not self.key or bool(self.names())

  def exists(self, **_: Any) -> bool:
    return self.is_file() or self.is_dir()

  def is_symlink(self) -> bool:
    return False

  def absolute(self) -> 'BucketPath':
    return self

  def resolve(self, strict: bool = False) -> 'BucketPath':
    return self

  def iterdir(self) -> Iterator['BucketPath']:
    return self.glob('*')

  def glob(self, pattern: str, **_: Any) -> Iterator['BucketPath']:  # type: ignore[override]
    wanted = pattern.split('/')
    for parts in sorted(_with_folders(self.names())):
      if len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted)):
        yield self.joinpath(*parts)

  def rglob(self, pattern: str, **_: Any) -> Iterator['BucketPath']:  # type: ignore[override]
    for parts in sorted(_with_folders(self.names())):
      if fnmatch.fnmatchcase(parts[-1], pattern):
        yield self.joinpath(*parts)

  def names(self) -> list[str]:
    """Of all objects below it, relative to it."""
    import tensorstore
    start = f'{self.key}/' if self.key else ''
    end = f'{self.key}0' if self.key else ''  # '0' is the character after '/'
    found = self._ask(self._store.list(tensorstore.KvStore.KeyRange(start, end)))
    keys = [key.decode() for key in found]
    # Google's servers are asked for a range of names, which its emulators do not know and list all.
    return sorted(key[len(start):] for key in keys if key.startswith(start) and key != start)

  # ---------------------------------------------------------------------------------------------- writing
  def write_bytes(self, data: bytes | memoryview) -> int:  # type: ignore[override]
    self._ask(self.start_write(bytes(data)))
    return len(data)

  def start_write(self, data: bytes) -> Any:
    """The write under way; its `result()` says how it ended."""
    return self._store.write(self.key, data)

  def write_text(self, data: str, *_: Any, **__: Any) -> int:  # type: ignore[override]
    return self.write_bytes(data.encode())

  def mkdir(self, *_: Any, **__: Any) -> None:
    """A folder is there as soon as anything is in it."""

  def unlink(self, missing_ok: bool = False) -> None:
    if not missing_ok and not self.is_file():
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
    self._ask(self._store.write(self.key, None))

  def remove_all(self) -> None:
    """Deletes the object, and all those below it."""
    in_parallel(lambda path: path.unlink(missing_ok=True), [self, *map(self.joinpath, self.names())])

  def _ask(self, future: Any, seconds: float | None = None) -> Any:
    """The answer of TensorStore, whose errors become OSErrors."""
    try:
      return future.result(timeout=seconds)
    except TimeoutError as error:
      raise BucketError(errno.ETIMEDOUT, 'it does not answer', str(self)) from error
    except (ValueError, RuntimeError) as error:
      raise BucketError(errno.EIO, ' '.join(str(error).split())[:300], str(self)) from error

  def check_access(self, field: str, writes: bool) -> None:
    """Refuses a bucket that is not there, does not answer, or may not be read (or written).

    Raises:
      ConfigError: naming `field`; within PROBE_SECONDS.
    """
    import tensorstore
    require(len(self.parts) > 1, field, str(self), 'name a bucket, such as s3://bucket/run')
    probe = self.joinpath(f'.probe-{os.getpid()}')
    steps: list[tuple[str, Callable[[], Any]]] = [
      ('read', lambda: self._store.list(tensorstore.KvStore.KeyRange(probe.key, f'{probe.key}0')))]
    if writes:
      steps.append(('written', lambda: self._store.write(probe.key, b'.')))
      steps.append(('cleared', lambda: self._store.write(probe.key, None)))
    deadline = time.monotonic() + PROBE_SECONDS
    for what, ask in steps:
      try:
        self._ask(ask(), max(0.0, deadline - time.monotonic()))
      except OSError as error:
        raise ConfigError(field, str(self), f'cannot be {what} ({_reason(error)}): check the name of the bucket, its '
                          'permissions, and the credentials and network of this machine') from error


def in_parallel(function: Callable[[U], T], paths: Sequence[U]) -> list[T]:
  """A bucket answers one request no faster than many."""
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    return list(pool.map(function, paths))


def _with_folders(names: Iterable[str]) -> set[tuple[str, ...]]:
  """The parts of the names, and those of the folders that they lie in."""
  found: set[tuple[str, ...]] = set()
  for name in names:
    parts = tuple(name.split('/'))
    found.update(parts[:i] for i in range(1, len(parts) + 1))
  return found


def _reason(error: OSError) -> str:
  text = str(error.strerror)
  for name, words in (('NoSuchBucket', 'there is no such bucket'), ('PERMISSION_DENIED', 'no permission'),
                      ('AccessDenied', 'no permission'), ('UNAUTHENTICATED', 'no permission')):
    if name in text:
      return words
  return text


@functools.cache
def _open(scheme: str, bucket: str) -> Any:
  import tensorstore
  return tensorstore.KvStore.open(_driver(scheme, bucket)).result()


def _driver(scheme: str, bucket: str) -> dict[str, Any]:
  """TensorStore's description of a bucket. Its gcs driver reads the variables of Google's libraries itself."""
  if scheme == 'gs':
    return {'driver': 'gcs', 'bucket': bucket, 'gcs_request_retries': RETRIES}
  spec: dict[str, Any] = {'driver': 's3', 'bucket': bucket, 's3_request_retries': RETRIES}
  endpoint = os.environ.get('AWS_ENDPOINT_URL_S3') or os.environ.get('AWS_ENDPOINT_URL')
  region = os.environ.get('AWS_REGION') or os.environ.get('AWS_DEFAULT_REGION')
  if endpoint:
    spec['endpoint'] = endpoint
    spec['aws_region'] = region or 'us-east-1'
  elif region:
    spec['aws_region'] = region
  if os.environ.get('AWS_ACCESS_KEY_ID'):  # else TensorStore looks where Amazon's libraries do
    spec['aws_credentials'] = {'type': 'environment'}
  return spec
