"""Files that survive a crash or a second process: replaced whole, locked, and stamped so that a change is noticed."""
import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Generator, Mapping
from io import BytesIO, FileIO
from pathlib import Path
from typing import BinaryIO

from llm_jax.runtime.buckets import BucketPath, in_parallel
from llm_jax.runtime.trees import for_each, read_tree

LOCK_POLL_SECONDS = 0.1
NEW_FILE_MODE = 0o666  # of which the process's umask takes its part away, as of every file that is opened
LONGEST_PREFIX = 100  # characters of a file's name in that of the temporary file that replaces it


def sync_folder(folder: Path) -> None:
  """Makes the names in `folder` survive a power cut."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def replace_file(path: Path, *, durable: bool = True) -> Generator[BinaryIO, None, None]:
  """A new file that takes the place of `path` when the body ends; where the body raises, the old file stays.

  A reader, or a crash at any moment, sees the old content or the new, never a part.

  durable: whether the new content also survives a power cut, for which this waits until the disk has it.
  """
  if isinstance(path, BucketPath):  # an object is replaced whole, and is safe as soon as it is written
    content = BytesIO()
    yield content
    path.write_bytes(content.getvalue())
    return
  temporary = path.parent / f'.{path.name[:LONGEST_PREFIX]}.{secrets.token_hex(8)}'
  # Not by `tempfile`, whose files only their owner may read: the umask says who may.
  descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, NEW_FILE_MODE)
  try:
    with open(descriptor, 'wb') as file:
      yield file
      file.flush()
      if durable:
        os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(temporary)
    raise
  if durable:
    sync_folder(path.parent)


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
  """Replaces `path` by `content`, see `replace_file`."""
  data = content.encode() if isinstance(content, str) else content
  with replace_file(path, durable=durable) as file:
    file.write(data)


def write_whole(file: FileIO, data: bytes) -> None:
  """Appends `data` to an unbuffered file: all of it, or nothing where the disk has no room for all.

  Raises:
    OSError: as the write does; the file is as it was.
  """
  end = file.seek(0, os.SEEK_END)
  left = memoryview(data)
  try:
    while left:
      left = left[file.write(left):]
  except OSError:
    os.ftruncate(file.fileno(), end)
    raise


# ---------------------------------------------------------------------------------------------- locks
_held_locks: set[int] = set()  # file descriptors


def _forget_locks_in_child() -> None:
  """A forked worker that outlives its killed parent must not keep the parent's locks."""
  while _held_locks:
    os.close(_held_locks.pop())


os.register_at_fork(after_in_child=_forget_locks_in_child)


class LockFile:
  """A lock file that this process holds."""

  def __init__(self, path: Path):
    self.path = path
    self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, NEW_FILE_MODE)

  def acquire(self, timeout: float | None) -> None:
    """Raises TimeoutError where another process still holds it."""
    _acquire(self._descriptor, self.path, timeout)
    _held_locks.add(self._descriptor)

  def renew(self) -> bool:
    """Makes the file again, and holds it, where it was deleted or replaced; returns whether that was so.

    Raises:
      TimeoutError: another process holds the file that is there now.
    """
    held = os.fstat(self._descriptor)
    with contextlib.suppress(FileNotFoundError):
      found = os.stat(self.path)
      if (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino):
        return False
    other = LockFile(self.path)
    try:
      other.acquire(0)
    except BaseException:
      other.close()
      raise
    self._descriptor, other._descriptor = other._descriptor, self._descriptor
    other.close()
    return True

  def write(self, content: bytes) -> None:
    """Replaces what the file holds, where the disk has room for it: a lock needs none."""
    with contextlib.suppress(OSError):
      os.ftruncate(self._descriptor, 0)
      os.pwrite(self._descriptor, content, 0)

  def close(self) -> None:
    _held_locks.discard(self._descriptor)
    os.close(self._descriptor)


@contextlib.contextmanager
def hold_lock(path: Path, timeout: float | None = None) -> Generator[LockFile, None, None]:
  """Holds the lock file `path` while the body runs.

  The kernel releases the lock when its owner dies, however that happens.

  timeout: seconds to wait for another owner; None: as long as it takes.

  Raises:
    TimeoutError: another process still holds it.
    OSError: the file cannot be made, or its file system has no locks.
  """
  lock = LockFile(path)
  with contextlib.closing(lock):
    lock.acquire(timeout)
    yield lock


@contextlib.contextmanager
def hold_folder(path: Path, timeout: float | None = None) -> Generator[None, None, None]:
  """Holds the folder itself while the body runs, where its file system can lock folders (over a network few can).

  Raises:
    TimeoutError: another process still holds it.
  """
  descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
  try:
    try:
      _acquire(descriptor, path, timeout)
    except TimeoutError:  # an OSError too
      raise
    except OSError:
      pass
    _held_locks.add(descriptor)
    yield
  finally:
    _held_locks.discard(descriptor)
    os.close(descriptor)


def _acquire(descriptor: int, path: Path, timeout: float | None) -> None:
  if timeout is None:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return
  deadline = time.monotonic() + timeout
  while True:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return
    except OSError as error:
      held_by_another = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
      if not held_by_another:
        raise
    if time.monotonic() > deadline:
      raise TimeoutError(f'{path}: another process holds this lock')
    time.sleep(LOCK_POLL_SECONDS)


# ---------------------------------------------------------------------------------------------- stamps
def files_below(folder: Path) -> dict[str, Path]:
  """Every file below `folder`, by its path relative to it, sorted."""
  return {name: folder / name for name in read_tree(folder).files}


def stamp(files: Mapping[str, Path]) -> str:
  """A digest of the files' names, sizes and times of change: another one as soon as any of them was written to or is
  gone. It takes no time, unlike a digest of what they hold."""
  digest = hashlib.sha256()
  for_all = in_parallel if any(isinstance(path, BucketPath) for path in files.values()) else for_each
  for name, state in zip(files, for_all(_state, list(files.values())), strict=True):
    digest.update(f'{name}\0{state}\0'.encode(errors='surrogateescape'))
  return digest.hexdigest()


def _state(path: Path) -> str:
  if isinstance(path, BucketPath):
    return path.generation() or 'absent'
  try:
    status = path.stat()
  except OSError:  # deleted, perhaps just now
    return 'absent'
  return f'{status.st_size} {status.st_mtime_ns}'


def size_of(path: Path) -> int:
  """Bytes of a file, or of the link itself; of an object in a bucket a guess, for only its content would tell."""
  return 64 << 20 if isinstance(path, BucketPath) else path.lstat().st_size
