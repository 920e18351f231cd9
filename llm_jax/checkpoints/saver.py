"""Writing a checkpoint while training goes on: the arrays, then the manifest, then what commits it."""
import contextlib
import itertools
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from llm_jax import paths
from llm_jax.checkpoints.array_writers import make_writer
from llm_jax.checkpoints.folders import clear_interrupted, commit, folder_name, remove, staging_folder
from llm_jax.checkpoints.kill_points import kill_point
from llm_jax.checkpoints.manifest import write_manifest
from llm_jax.checkpoints.metadata import ArraySpec, CheckpointMetadata
from llm_jax.checkpoints.shared_hashing import answer, asking
from llm_jax.runtime import processes
from llm_jax.runtime.errors import MIB, CheckpointError, free_space

DISK_FULL = re.compile('No space|RESOURCE_EXHAUSTED|quota|too large')
OUT_OF_MEMORY = re.compile('[Oo]ut of memory')  # which RESOURCE_EXHAUSTED stands for too
REASON_CHARACTERS = 500
_saves = itertools.count()  # of all stores, the same on every process


class BackgroundSaver:
  """Saves one state at a time. Every process of a run makes the same calls; process 0 commits.

  on_commit: called with the step in the background thread of process 0, as soon as a checkpoint is committed.
  """

  def __init__(self, folder: Path, on_commit: Callable[[int], None]):
    self.folder = folder
    self._on_commit = on_commit
    self._writer = make_writer(folder)
    self._thread: threading.Thread | None = None
    self._error: BaseException | None = None
    self._arrays_written = True  # of the save under way, by this process
    self._step = -1  # of the save under way
    self._staging = folder  # where that is written
    self._num_bytes = 0  # of its arrays

  def start(self, step: int, state: Any, metadata: CheckpointMetadata) -> None:
    """Starts a save; returns when the arrays have left the devices, so that they may be donated.

    Raises:
      CheckpointError: the arrays cannot be written.
    """
    kill_point('before_write', step)
    self._step = step
    arrays = dict(paths.leaves(state))
    self._num_bytes = sum(array.nbytes for array in arrays.values())
    stated = _as_they_are_now(metadata, step, arrays)
    try:
      self._staging = self.folder / processes.on_first(lambda: self._make_room(step))
      self._writer.start(self._staging, arrays)
    except (OSError, ValueError, RuntimeError) as error:
      raise self._failure(error) from error
    self._thread = threading.Thread(target=self._finish, args=(f'save_{next(_saves)}', step, self._staging, stated),
                                    name='checkpoint')
    self._thread.start()

  def wait(self) -> None:
    """Waits until the save under way is committed.

    Raises:
      CheckpointError: on every process when the save failed on any of them.
    """
    if self._thread is None:
      return
    self._thread.join()
    self._thread = None
    error = self._error
    self._error = None
    # Where this process could not write its arrays, the others still wait for it inside of Orbax. They cannot take
    # part in a gather; they end when this process does.
    failed = processes.gather(error is not None) if self._arrays_written else []
    if error is not None:
      raise self._failure(error) from error
    if any(failed):
      raise CheckpointError(f'{self.folder}: step {self._step} was not saved: process {failed.index(1)} says why')

  def join(self) -> None:
    """Lets the save under way end, whether or not it succeeds."""
    if self._thread is not None:
      self._thread.join()

  def close(self) -> None:
    try:
      self.wait()
    finally:
      self._writer.close()

  def _make_room(self, step: int) -> str:
    clear_interrupted(self.folder)
    staging = staging_folder(self.folder, step)
    staging.mkdir(parents=True)
    return staging.name

  def _finish(self, key: str, step: int, staging: Path, metadata: dict[str, Any]) -> None:
    """In the background: waits for the arrays, writes the manifest, commits.   key: of this save's questions."""
    try:
      kill_point('mid_array', step)
      self._arrays_written = False
      self._writer.wait(key)
      self._arrays_written = True
      if jax.process_index() != 0:
        answer(key, self.folder)
        return
      kill_point('before_manifest', step)
      with asking(key, self.folder) as read:
        write_manifest(staging, metadata, read)
      kill_point('before_commit', step)
      commit(staging, self.folder / folder_name(step))
      kill_point('after_commit', step)
      self._on_commit(step)
    except BaseException as error:  # raised again by the thread that waits
      self._error = error

  def _failure(self, error: BaseException) -> CheckpointError:
    reason = ' '.join(str(error).split())[:REASON_CHARACTERS]
    if jax.process_index() == 0:  # half a checkpoint must not fill the disk
      with contextlib.suppress(OSError):
        remove(self._staging)
    if DISK_FULL.search(reason) and not OUT_OF_MEMORY.search(reason):
      return CheckpointError(f'{self.folder}: step {self._step} was not saved (disk full, or a limit on file size: '
                             f'{reason}); the checkpoints before it are intact. It takes about '
                             f'{self._num_bytes / MIB:,.1f} MiB beside them; {free_space(self.folder)}: make room, and '
                             'start the same command again')
    return CheckpointError(f'{self.folder}: step {self._step} was not saved (cannot write: {reason}); '
                           'the checkpoints before it are intact')


def _as_they_are_now(metadata: CheckpointMetadata, step: int, arrays: dict[str, Any]) -> dict[str, Any]:
  """A copy of the metadata as JSON values: the manifest is written later, while the next steps may change them."""
  leaves = {name: ArraySpec.of(array).to_json() for name, array in arrays.items()}
  copy = json.loads(json.dumps(metadata.to_json()))
  return {**copy, 'step': step, 'leaves': leaves}
