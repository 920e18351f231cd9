"""Lines that are appended to a file in a bucket, where nothing can be appended: a folder of parts.

<workdir>/metrics.jsonl/00000001    lines
<workdir>/metrics.jsonl/00000002    those that follow

The newest part is written anew with every few seconds' lines until it has PART_BYTES; then the next one begins. A
writer begins with a part of its own. All parts, one behind the other, are the file.
"""
import contextlib
import time
from collections.abc import Callable
from typing import Any

from llm_jax.runtime.buckets import BucketPath, in_parallel

PART_BYTES = 1 << 20
FLUSH_SECONDS = 15.0
MOST_BYTES = 64 * PART_BYTES  # that wait for a bucket which does not answer; then the oldest lines are given up
CLOSE_SECONDS = 60.0


def read_parts(folder: BucketPath) -> list[bytes]:
  """The lines of all parts, each with its end."""
  contents = in_parallel(BucketPath.read_bytes, _parts(folder))
  return b''.join(contents).splitlines(keepends=True)


def _parts(folder: BucketPath) -> list[BucketPath]:
  return [folder / name for name in folder.names() if name.isdigit()]


class PartWriter:
  """Appends lines. Writing goes on in the background, a request at a time; what fails waits and is tried again."""

  def __init__(self, folder: BucketPath):
    self._folder = folder
    self._number: int | None = None  # of the newest part; asked for when there is something to write
    self._part: list[bytes] = []  # lines of that part, written or under way
    self._waiting: list[bytes] = []
    self._writing: Any = None  # the request under way
    self._flushed_at = time.monotonic()

  def append(self, line: bytes) -> None:
    """Raises OSError where an earlier write has failed; its lines, and this one, wait."""
    self._waiting.append(line)
    while sum(map(len, self._waiting)) > MOST_BYTES:
      del self._waiting[0]
    is_due = time.monotonic() - self._flushed_at > FLUSH_SECONDS
    if is_due and (self._writing is None or self._writing.done()):
      self._start()

  def flush(self, seconds: float | None = None) -> None:
    """Waits until all lines are in the bucket.

    Raises:
      OSError: they cannot be written, or are not within `seconds`.
    """
    self._end_write(seconds)
    if self._waiting:
      self._start()
      self._end_write(seconds)

  def _start(self) -> None:
    self._end_write(None)
    self._flushed_at = time.monotonic()
    if self._number is None or sum(map(len, self._part)) > PART_BYTES:
      newest = max((int(part.name) for part in _parts(self._folder)), default=0)
      self._number = max(newest, self._number or 0) + 1
      self._part = []
    self._part += self._waiting
    self._waiting = []
    self._writing = (self._folder / f'{self._number:08d}').start_write(b''.join(self._part))

  def _end_write(self, seconds: float | None) -> None:
    if self._writing is None:
      return
    try:
      self._writing.result(timeout=seconds)
    except TimeoutError as error:
      raise OSError(f'{self._folder}: the bucket does not answer') from error
    except (ValueError, RuntimeError) as error:
      self._waiting = self._part + self._waiting
      self._part = []
      raise OSError(f'{self._folder}: {error}') from error
    finally:
      if self._writing.done():
        self._writing = None

  def keep_only(self, is_kept: Callable[[bytes], bool]) -> None:
    """Forgets the other lines, also of earlier writers. A kill on the way leaves some of them, for the next try."""
    with contextlib.suppress(OSError):
      self._end_write(CLOSE_SECONDS)
    self._waiting = [line for line in self._waiting if is_kept(line)]
    self._number = None
    self._part = []
    for part in reversed(_parts(self._folder)):
      lines = part.read_bytes().splitlines(keepends=True)
      kept = [line for line in lines if is_kept(line)]
      if not kept:
        part.unlink(missing_ok=True)
      elif len(kept) < len(lines):
        part.write_bytes(b''.join(kept))
