"""The numbers of a run as TensorBoard shows them, a folder for each stage."""
import importlib
import pathlib
import socket
import struct
import time
from collections.abc import Sequence
from io import FileIO
from typing import Any

from llm_jax.config.trackers import TensorBoard
from llm_jax.runtime.buckets import BucketPath
from llm_jax.runtime.files import write_whole
from llm_jax.tracking.parts import CLOSE_SECONDS
from llm_jax.tracking.tracker import Record, TrackedRun

FOLDER = 'tensorboard'
FLUSH_SECONDS = 20
VERSION = 'brain.Event:2'
MOST_BYTES = 1 << 20  # that wait to be written


class TensorBoardTracker:
  """Writes the numbers of records as scalars named `kind/name`, or `kind/name/source` where they are of one source.

  A folder for each stage: TensorBoard shows them as runs.
  """

  def __init__(self, config: TensorBoard, tracked: TrackedRun):
    self.folder = tracked.workdir / FOLDER
    self._files: dict[str, EventFile] = {}  # by stage
    self._purge_steps: dict[str, int] = {}  # the first step that TensorBoard is to forget, by stage

  @property
  def name(self) -> str:
    return str(self.folder)

  def write(self, record: Record) -> None:
    file = self._file(record.stage)
    for name, value in record.numbers().items():
      file.add_scalar(name, value, record.step, record.time)
    file.flush_if_due()

  def rewind(self, stage: str, step: int, forgotten: Sequence[Record] = ()) -> None:
    self.close()
    self._purge_steps[stage] = step + 1
    _protocol()  # loaded before a stage begins, for a step is no time to wait for a slow disk

  def close(self) -> None:
    files = list(self._files.values())
    self._files.clear()  # first: one that fails to close is not written to again
    for file in files:
      file.close()

  def _file(self, stage: str) -> 'EventFile':
    if stage not in self._files:
      folder = self.folder / stage
      purge_step = self._purge_steps.pop(stage, None)
      in_bucket = isinstance(folder, BucketPath)
      self._files[stage] = BucketEventFile(folder, purge_step) if in_bucket else EventFile(folder, purge_step)
    return self._files[stage]


class EventFile:
  """A file of events in TensorFlow's record format, written in the calling thread: a disk that fails is an error here,
  and nowhere else.

  purge_step: the first step of earlier files that is to be forgotten.
  """

  def __init__(self, folder: pathlib.Path, purge_step: int | None):
    events, self._summaries = _protocol()
    self._events = events
    self._path = folder / _file_name()
    self._file: FileIO | None = None  # opened when there is something to write
    self._unwritten = b''
    self._flushed_at = -float('inf')  # the first events are written at once
    self._add(events.Event(wall_time=time.time(), file_version=VERSION))
    if purge_step is not None:
      start = events.SessionLog(status=events.SessionLog.START)
      self._add(events.Event(wall_time=time.time(), step=purge_step, session_log=start))

  def add_scalar(self, tag: str, value: float, step: int, wall_time: float) -> None:
    summary = self._summaries.Summary(value=[self._summaries.Summary.Value(tag=tag, simple_value=value)])
    self._add(self._events.Event(wall_time=wall_time, step=step, summary=summary))

  def flush_if_due(self) -> None:
    is_due = time.monotonic() - self._flushed_at > FLUSH_SECONDS or len(self._unwritten) > MOST_BYTES
    if is_due:
      self.flush()

  def flush(self) -> None:
    """Writes what waits. Where that fails it waits on, but not for ever: memory is worth more."""
    self._flushed_at = time.monotonic()
    if len(self._unwritten) > 16 * MOST_BYTES:
      self._unwritten = b''
    if self._file is None:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      self._file = open(self._path, 'xb', buffering=0)
    write_whole(self._file, self._unwritten)
    self._unwritten = b''

  def close(self) -> None:
    try:
      self.flush()
    finally:
      if self._file is not None:
        self._file.close()

  def _add(self, event: Any) -> None:
    data = event.SerializeToString()
    length = struct.pack('<Q', len(data))
    self._unwritten += length + _checksum(length) + data + _checksum(data)


class BucketEventFile(EventFile):
  """The same in a bucket, where a file is written anew with all its events until it has MOST_BYTES; then another one
  begins."""

  def __init__(self, folder: BucketPath, purge_step: int | None):
    super().__init__(folder, purge_step)
    self._object = folder / self._path.name
    self._content = b''
    self._writing: Any = None  # the request under way

  def flush(self) -> None:
    self._flushed_at = time.monotonic()
    if len(self._unwritten) > 16 * MOST_BYTES:
      self._unwritten = b''
    if self._writing is not None and not self._writing.done():
      return
    self._content += self._unwritten
    self._unwritten = b''
    self._writing = self._object.start_write(self._content)
    if len(self._content) > MOST_BYTES:
      self._content = b''
      self._object = self._object.with_name(_file_name())
      self._add(self._events.Event(wall_time=time.time(), file_version=VERSION))

  def close(self) -> None:
    self._await_write()
    self.flush()
    self._await_write()

  def _await_write(self) -> None:
    if self._writing is not None:
      self._writing.result(timeout=CLOSE_SECONDS)


def _file_name() -> str:
  # The suffix keeps a run that resumes within a second from overwriting the file before it.
  return f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}'


def _protocol() -> tuple[Any, Any]:
  """TensorBoard's messages: events and summaries."""
  return (importlib.import_module('tensorboardX.proto.event_pb2'),
          importlib.import_module('tensorboardX.proto.summary_pb2'))


def _checksum(data: bytes) -> bytes:
  """CRC-32C, rotated and shifted as TensorFlow's record format wants it."""
  masked_crc32c: Any = importlib.import_module('tensorboardX.record_writer').masked_crc32c
  return struct.pack('<I', masked_crc32c(data))
