"""Errors that every process of a run raises together (see `processes.on_first`), and an error's text as one line."""
import contextlib
import errno
import shutil
from collections.abc import Generator
from pathlib import Path

MOST_CHARACTERS = 500
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MIB = 1 << 20
# What jax, XLA and the system say where memory is short; Orbax says some of it of a full disk.
OUT_OF_MEMORY = ('RESOURCE_EXHAUSTED', 'out of memory', 'Out of memory', 'bad_alloc', 'Cannot allocate memory')


class CheckpointError(RuntimeError):
  """A checkpoint that cannot be written or believed. The message names the file."""


class FileError(RuntimeError):
  """A file that cannot be written or read as it must be, such as on a full disk. The message names it."""


class RewardError(RuntimeError):
  """A reward that is no number, or a function of the user's that raises. The message names the function and the row."""


@contextlib.contextmanager
def explaining_full_disk(path: Path, what: str, remedy: str, num_bytes: int | None = None
                         ) -> Generator[None, None, None]:
  """In the body, a disk without room for `what` (its size: `num_bytes`, where that is known) raises FileError, which
  names `path` and the way out, `remedy`."""
  try:
    yield
  except OSError as error:
    if error.errno not in FULL:
      raise
    path = Path(error.filename) if isinstance(error.filename, str) else path
    needed = '' if num_bytes is None else f' takes up to {num_bytes / MIB:,.1f} MiB and'
    raise FileError(f'{path}: {what}{needed} cannot be written ({error.strerror}; {free_space(path)}): {remedy}, and '
                    'start the same command again') from error


def free_space(path: Path) -> str:
  """How much room the disk of `path` has, in words."""
  existing = next((folder for folder in (path, *path.parents) if folder.exists()), Path('/'))
  try:
    return f'{shutil.disk_usage(existing).free / MIB:,.1f} MiB are free there'
  except (OSError, TypeError):  # the second of a bucket
    return 'how much is free cannot be told'


def is_full_disk(error: BaseException) -> bool:
  return isinstance(error, OSError) and error.errno in FULL


def one_line(error: BaseException) -> str:
  """The error's text without line breaks, cut where it is very long; its class where it has no text."""
  return ' '.join(str(error).split())[:MOST_CHARACTERS] or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
  """Whether the memory of the host or of a device was too small. An error that names a file says itself what is wrong.
  """
  if isinstance(error, CheckpointError | FileError | RewardError):
    return False
  return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)
