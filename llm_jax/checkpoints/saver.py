"""Writing a checkpoint while training goes on: the arrays by Orbax, then the manifest, then the rename that commits."""
import itertools
import json
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from llm_jax import paths
from llm_jax.checkpoints.folders import SAVING, clear_interrupted, commit, folder_name
from llm_jax.checkpoints.kill_points import kill_point
from llm_jax.checkpoints.manifest import write_manifest
from llm_jax.checkpoints.metadata import ArraySpec, CheckpointMetadata
from llm_jax.checkpoints.orbax_noise import quieten
from llm_jax.checkpoints.shared_hashing import answer, asking
from llm_jax.runtime import processes
from llm_jax.runtime.errors import MIB, CheckpointError, free_space
from llm_jax.runtime.files import sync_folder

# By default Orbax gives a save up after 20 minutes of the wall clock: a large state on a slow disk would never be
# saved, and a clock that is corrected meanwhile would end the run. A process that hangs is the watchdog's to notice.
SAVE_SECONDS = 7 * 24 * 3_600
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
    self._orbax: ocp.AsyncCheckpointer | None = None
    self._thread: threading.Thread | None = None
    self._error: BaseException | None = None
    self._arrays_written = True  # of the save under way, by this process
    self._step = -1  # of the save under way
    self._num_bytes = 0  # of its arrays

  def start(self, step: int, state: Any, metadata: CheckpointMetadata) -> None:
    """Starts a save; returns when the arrays have left the devices, so that they may be donated.

    Raises:
      CheckpointError: the arrays cannot be written.
    """
    kill_point('before_write', step)
    self._step = step
    staging = self.folder / f'{folder_name(step)}{SAVING}'
    arrays = dict(paths.leaves(state))
    self._num_bytes = sum(array.nbytes for array in arrays.values())
    stated = _as_they_are_now(metadata, step, arrays)
    try:
      processes.on_first(lambda: self._make_room(staging))
      self._checkpointer().save(staging.absolute() / 'state', args=ocp.args.PyTreeSave(paths.nest(arrays)))
    except (OSError, ValueError, RuntimeError) as error:
      raise self._failure(error) from error
    self._thread = threading.Thread(target=self._finish, args=(f'save_{next(_saves)}', step, staging, stated),
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
      if self._orbax is not None:
        self._orbax.close()
        self._orbax = None

  def _checkpointer(self) -> ocp.AsyncCheckpointer:
    if self._orbax is None:
      quieten()
      options = ocp.AsyncOptions(timeout_secs=SAVE_SECONDS)
      self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), async_options=options)
    return self._orbax

  def _make_room(self, staging: Path) -> None:
    clear_interrupted(self.folder)
    staging.mkdir(parents=True)

  def _finish(self, key: str, step: int, staging: Path, metadata: dict[str, Any]) -> None:
    """In the background: waits for the arrays, writes the manifest, commits.   key: of this save's questions."""
    try:
      kill_point('mid_array', step)
      self._arrays_written = False
      self._checkpointer().wait_until_finished()
      self._arrays_written = True
      if jax.process_index() != 0:
        answer(key, self.folder)
        return
      kill_point('before_manifest', step)
      with asking(key, self.folder) as read:
        write_manifest(staging, metadata, read)
      kill_point('before_commit', step)
      commit(staging, self.folder / folder_name(step))
      sync_folder(self.folder)
      kill_point('after_commit', step)
      self._on_commit(step)
    except BaseException as error:  # raised again by the thread that waits
      self._error = error

  def _failure(self, error: BaseException) -> CheckpointError:
    reason = ' '.join(str(error).split())[:REASON_CHARACTERS]
    if jax.process_index() == 0:  # half a checkpoint must not fill the disk
      shutil.rmtree(self.folder / f'{folder_name(self._step)}{SAVING}', ignore_errors=True)
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
