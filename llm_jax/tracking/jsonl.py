"""Files of one JSON object a line, which survive a kill in the middle of a line and a disk that is full for a while.

The last entry of a line is its checksum, `"crc32": "1c291ca3"`, over the line without it.
"""
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llm_jax.config.type_hints import is_mapping
from llm_jax.runtime.buckets import BucketPath
from llm_jax.runtime.files import replace_file, write_whole
from llm_jax.tracking.parts import CLOSE_SECONDS, PartWriter, read_parts
from llm_jax.tracking.tracker import Record

MOST_UNWRITTEN = 100_000  # objects that wait for a disk without room
CHECKSUM = 'crc32'
HEX_DIGITS = re.compile('[0-9a-f]{8}')


class JsonlFile:
  """Appends objects to a file, and forgets those after a step.

  What a disk refuses waits, up to MOST_UNWRITTEN objects, and is written once the disk takes it: nothing twice, and
  nothing before what was to be forgotten is gone.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self._may_be_torn = True  # whether the last line may be half an object: after a kill, or a failed write
    self._unwritten: list[str] = []
    self._rewinds: list[tuple[str, int]] = []  # that are still to be done

  @property
  def name(self) -> str:
    return str(self.path)

  def write(self, record: Record) -> None:
    self.append(record.to_json())

  def append(self, entry: dict[str, Any]) -> None:
    self._unwritten.append(_line(entry))
    del self._unwritten[:-MOST_UNWRITTEN]
    self._write()

  def rewind(self, stage: str, step: int, forgotten: Sequence[Record] = ()) -> None:
    """Replaces or cuts the file at once, so that a kill leaves the old one or the new one; half a line at its end is
    dropped."""
    self._unwritten = [line for line in self._unwritten if _is_kept(json.loads(line), stage, step)]
    self._rewinds.append((stage, step))
    self._rewind()

  def flush(self) -> None:
    """Every line is written when it comes."""

  def close(self) -> None:
    """Every line that the disk took is written already."""
    if self._unwritten:
      self._write()

  def _write(self) -> None:
    self._rewind()
    start = '\n' if self._may_be_torn and _ends_mid_line(self.path) else ''
    self._may_be_torn = True
    # Opened anew each time (some 20 microseconds), so that a folder that is gone is noticed.
    with open(self.path, 'ab', buffering=0) as file:
      write_whole(file, (start + ''.join(self._unwritten)).encode())
    self._may_be_torn = False
    self._unwritten.clear()

  def _rewind(self) -> None:
    while self._rewinds:
      stage, step = self._rewinds[0]
      _keep_only(self.path, lambda entry, stage=stage, step=step: _is_kept(entry, stage, step))
      del self._rewinds[0]


class BucketJsonlFile:
  """The same in a bucket, see `parts.py`. Records of training steps wait for some seconds, others are written at once;
  the trainer flushes all of them before it saves."""

  def __init__(self, path: BucketPath):
    self.path = path
    self._parts = PartWriter(path)

  @property
  def name(self) -> str:
    return str(self.path)

  def write(self, record: Record) -> None:
    self._parts.append(_line(record.to_json()).encode())
    if record.kind != 'train':
      self._parts.flush()

  def append(self, entry: dict[str, Any]) -> None:
    self._parts.append(_line(entry).encode())
    self._parts.flush()

  def rewind(self, stage: str, step: int, forgotten: Sequence[Record] = ()) -> None:
    def is_kept(line: bytes) -> bool:
      entry = _entry(line)
      return entry is not None and _is_kept(entry, stage, step)

    self._parts.keep_only(is_kept)

  def flush(self) -> None:
    self._parts.flush()

  def close(self) -> None:
    self._parts.flush(CLOSE_SECONDS)


def open_jsonl(path: pathlib.Path) -> JsonlFile | BucketJsonlFile:
  return BucketJsonlFile(path) if isinstance(path, BucketPath) else JsonlFile(path)


def _is_kept(entry: dict[str, Any], stage: str, step: int) -> bool:
  return entry.get('stage') != stage or entry['step'] <= step


def read_jsonl(path: pathlib.Path, holding: str = '') -> Iterator[dict[str, Any]]:
  """The objects that have a step, in order; nothing where there is no file. Damaged lines are passed over.

  holding: only those whose line has this text in it; the others are not parsed, which is what takes the time.
  """
  for _, entry in _lines(path, holding):
    if entry is not None:
      yield entry


def damaged_lines(path: pathlib.Path) -> list[int]:
  """Numbers of the lines that are not as they were written, from 1. Half a line at the end is what a kill leaves."""
  damaged = [number for number, entry in _lines(path) if entry is None]
  last = sum(1 for _ in _lines(path))
  return [number for number in damaged if number != last or not _ends_mid_line(path)]


def _lines(path: pathlib.Path, holding: str = '') -> Iterator[tuple[int, dict[str, Any] | None]]:
  """(number, the object) of every line that holds a text; None for one that is not as it was written."""
  if isinstance(path, BucketPath):
    for number, line in enumerate(read_parts(path), 1):
      if holding.encode() in line:
        yield number, _entry(line)
    return
  if not path.exists():
    return
  with open(path, encoding='utf-8', errors='replace', newline='\n') as file:
    for number, line in enumerate(file, 1):
      if holding in line:
        yield number, _entry(line)


def _line(entry: dict[str, Any]) -> str:
  return json.dumps({**entry, CHECKSUM: _checksum(entry)}) + '\n'


def _entry(line: str | bytes) -> dict[str, Any] | None:
  """The object of a line without its checksum, which older versions did not write; None for a damaged one."""
  try:
    entry = json.loads(line)
  except (ValueError, RecursionError):
    return None
  if not is_mapping(entry) or not isinstance(entry.get('step'), int):
    return None
  found = dict(entry)
  checksum = found.pop(CHECKSUM, None)
  if checksum is None:  # of an older version, unless it is the name that was damaged
    last = str(list(found.values())[-1])
    return None if HEX_DIGITS.fullmatch(last) else found
  return found if checksum == _checksum(found) else None


def _checksum(entry: dict[str, Any]) -> str:
  return f'{zlib.crc32(json.dumps(entry).encode()):08x}'


def _keep_only(path: pathlib.Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
  if not path.exists():
    return
  end = _end_of_kept(path, is_kept)
  if end is not None:  # the usual case; it needs no room on the disk
    with open(path, 'r+b') as file:
      file.truncate(end)
      os.fsync(file.fileno())
    return
  with replace_file(path) as file:
    for entry in read_jsonl(path):
      if is_kept(entry):
        file.write(_line(entry).encode())


def _end_of_kept(path: pathlib.Path, is_kept: Callable[[dict[str, Any]], bool]) -> int | None:
  """Where the file ends that holds all that is kept, when that is what it begins with; else None."""
  kept_end = end = 0
  is_mixed = False
  with open(path, 'rb') as file:
    for line in file:
      entry = _entry(line)
      if end > kept_end and entry is not None and is_kept(entry):
        is_mixed = True
      end += len(line)
      if end - len(line) == kept_end and entry is not None and line.endswith(b'\n') and is_kept(entry):
        kept_end = end
  return None if is_mixed else kept_end


def _ends_mid_line(path: pathlib.Path) -> bool:
  if isinstance(path, BucketPath):  # a part is written whole
    return False
  if not path.exists() or path.stat().st_size == 0:
    return False
  with open(path, 'rb') as file:
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b'\n'
