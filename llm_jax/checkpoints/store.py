"""Checkpoints that are believed only when verified.

<folder>/<step:08d>/state/         arrays, written by Orbax
<folder>/<step:08d>/manifest.json  sha256 of every file there, the step, and the metadata that the caller states

A checkpoint is prepared under `<step>.saving` and committed by one rename, so that a folder with a plain name has been
complete once: whatever is missing from it later is damage, not an interrupted save.
"""
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from llm_jax import paths
from llm_jax.checkpoints.checkpoint import (
  FOLDER_NAME,
  SavedCheckpoint,
  describe,
  from_manifest,
  nest,
  open_checkpoint,
)
from llm_jax.checkpoints.manifest import read_manifest, write_manifest
from llm_jax.runtime import processes
from llm_jax.runtime.errors import CheckpointError
from llm_jax.runtime.files import sync_folder

# Orbax gives a save up after 20 minutes of the wall clock: a large state on a slow disk would never be saved, and a
# clock that is set right meanwhile would end the run. Who no longer moves is noticed elsewhere (`watchdog.py`).
SAVE_SECONDS = 7 * 24 * 3_600
KILL_POINTS = ('before_write', 'mid_array', 'before_manifest', 'before_commit', 'after_commit', 'mid_gc')


def kill_point(name: str, step: int) -> None:
  """Ends the process by SIGKILL where the environment asks for it: LLM_JAX_KILL_AT=before_commit, or before_commit@40
  for the save of step 40. Tests use it to die in the middle of a save."""
  if os.environ.get('LLM_JAX_KILL_AT') in (name, f'{name}@{step}'):
    os.kill(os.getpid(), signal.SIGKILL)


def _print_warning(text: str) -> None:
  print(f'warning: {text}', file=sys.stderr, flush=True)


def _verified(path: Path) -> list[Any]:
  """What process 0 tells the others of a checkpoint that it has verified: its name, and the stamps of its files."""
  return [path.name, open_checkpoint(path).stamps]


class CheckpointStore:
  """The checkpoints of one stage. Every process of a run makes the same calls; process 0 commits and deletes.

  keep: how many of the newest checkpoints stay.   warn: told of every checkpoint that is not believed.
  pinned: steps whose checkpoints stay beside them.
  every: 0, or only the newest and the multiples of it are kept and averaged: what is there is then the same whether or
    not the run was asked to stop in between, and saved.
  """

  def __init__(self, folder: Path, keep: int = 1, warn: Callable[[str], None] = _print_warning, *, every: int = 0,
               pinned: Collection[int] = ()):
    self.folder, self.keep, self.warn, self.every = Path(folder), keep, warn, every
    self.pinned = frozenset(pinned)
    self._orbax: ocp.AsyncCheckpointer | None = None
    self._thread: threading.Thread | None = None
    self._error: BaseException | None = None
    self._written = True  # the arrays of the save under way, by this process
    self._saving = -1

  def __enter__(self) -> 'CheckpointStore':
    return self

  def __exit__(self, kind: type | None, *rest: object) -> None:
    if kind is None:
      self.close()
    elif self._thread is not None and jax.process_count() == 1:
      self._thread.join()  # the save that was under way is still good; other processes may no longer answer

  def steps(self) -> list[int]:
    """Steps of the committed checkpoints, highest first. By number, never by clock; nothing is verified."""
    return list(dict.fromkeys(step for step, _ in self._committed()))

  def latest_valid(self) -> SavedCheckpoint | None:
    """The checkpoint of the highest step whose files are all as written; None when there are none at all.

    Process 0 verifies and the others follow it.

    Raises:
      CheckpointError: when there are checkpoints and none is valid: training must not silently begin again.
    """
    found = processes.on_first(self._newest_valid)
    return found and self._opened(*found)

  def newest(self, count: int) -> list[SavedCheckpoint]:
    """The checkpoints of the `count` highest steps, all verified, highest first.

    Raises:
      CheckpointError: when there are fewer, or one of them is damaged.
    """
    found = processes.on_first(lambda: [_verified(path) for path in self._regular(self._committed())[:count]])
    if len(found) < count:
      raise CheckpointError(f'{self.folder}: holds {len(found)} checkpoints, {count} are to be averaged: save more '
                            'often (config.checkpoints.every) and keep them (config.checkpoints.keep)')
    return [self._opened(*each) for each in found]

  def at(self, step: int) -> SavedCheckpoint:
    """The checkpoint of `step`, verified.

    Raises:
      CheckpointError: when there is none, or it is damaged.
    """
    def find() -> list[Any] | None:
      path = next((path for other, path in self._committed() if other == step), None)
      return path and _verified(path)

    found = processes.on_first(find)
    if found is None:
      raise CheckpointError(f'{self.folder}: has no checkpoint of step {step}, only of '
                            f'{", ".join(map(str, self.steps())) or "none"}: bring it back from a copy')
    return self._opened(*found)

  def _opened(self, name: str, stamps: dict[str, Any]) -> SavedCheckpoint:
    return from_manifest(self.folder / name, read_manifest(self.folder / name), stamps)

  def _newest_valid(self) -> list[Any] | None:
    bad = []
    for _, path in self._committed():
      try:
        return _verified(path)
      except CheckpointError as error:
        bad.append(str(error))
        self.warn(f'checkpoint not used: {error}')
    if bad:
      raise CheckpointError(f'{self.folder}: none of its {len(bad)} checkpoints is valid: {"; ".join(bad)}. '
                            'Bring one back from a copy, or start in another workdir')
    return None

  def save(self, step: int, state: Any, metadata: dict[str, Any], *, wait: bool = False) -> None:
    """Starts saving `state` (a pytree of jax arrays) as the checkpoint of `step`; returns when the arrays have left the
    devices, so that they may be donated. Waits first for the save before.

    metadata: JSON values: config, fingerprints, data position, lineage ('step' and 'leaves' are added here).

    Raises:
      CheckpointError: when this save, or the one before, cannot be written. Earlier checkpoints stay as they are.
    """
    self.wait()
    kill_point('before_write', step)
    self._saving = step
    staging = self.folder / f'{step:08d}.saving'
    named = dict(paths.leaves(state))
    metadata = json.loads(json.dumps(metadata))  # as they are now: they are written later, beside the next steps
    metadata = {**metadata, 'step': step, 'leaves': {name: describe(leaf) for name, leaf in named.items()}}
    try:
      processes.on_first(lambda: self._clear(staging))
      if self._orbax is None:
        patience = ocp.AsyncOptions(timeout_secs=SAVE_SECONDS)
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), async_options=patience)
      self._orbax.save(staging.absolute() / 'state', args=ocp.args.PyTreeSave(nest(named)))
    except (OSError, ValueError, RuntimeError) as error:
      raise self._failure(error) from error
    self._thread = threading.Thread(target=self._commit, args=(step, staging, metadata), name='checkpoint')
    self._thread.start()
    if wait:
      self.wait()

  def wait(self) -> None:
    """Waits until the save under way is committed; every process learns whether it was, or ends with the one that
    knows."""
    if self._thread is None:
      return
    self._thread.join()
    self._thread = None
    error, self._error = self._error, None
    # Where it was the arrays, the others wait inside of Orbax for this process: they end when it does.
    failed = processes.gather(error is not None) if self._written else []
    if error is not None:
      raise self._failure(error) from error
    if any(failed):
      raise CheckpointError(f'{self.folder}: step {self._saving} was not saved: process {failed.index(1)} says why')

  def close(self) -> None:
    try:
      self.wait()
    finally:
      if self._orbax is not None:
        self._orbax.close()
        self._orbax = None

  def _commit(self, step: int, staging: Path, metadata: dict[str, Any]) -> None:
    """In the background: the manifest, the rename that commits, then the deletion of older checkpoints."""
    try:
      kill_point('mid_array', step)
      self._written = False
      self._orbax.wait_until_finished()
      self._written = True
      if jax.process_index() != 0:
        return
      kill_point('before_manifest', step)
      write_manifest(staging, metadata)
      kill_point('before_commit', step)
      final = self.folder / f'{step:08d}'
      if final.exists():
        self._delete(final.with_name(final.name + '.old'))
        final.rename(final.with_name(final.name + '.old'))
      staging.rename(final)
      sync_folder(self.folder)
      kill_point('after_commit', step)
      self._collect(step)
    except BaseException as error:  # handed to the thread that waits
      self._error = error

  def _collect(self, step: int) -> None:
    """Deletes what is older than the newest `keep`, the one just committed being the first of them, and not pinned.
    Checkpoints of higher steps were not believed when this run began, or it would have gone on from them: they stay
    until overwritten.
    """
    believed = [(other, path) for other, path in self._committed() if other <= step]
    kept = self._regular(believed)[:self.keep]
    for other, path in believed:
      if path not in kept and other not in self.pinned:
        self._delete(path)

  def _delete(self, path: Path) -> None:
    """Takes the checkpoint's name away first, so that half of one is never seen."""
    if path.exists():
      doomed = path.with_name(path.name + '.deleting')
      shutil.rmtree(doomed, ignore_errors=True)
      path.rename(doomed)
      kill_point('mid_gc', self._saving)
      shutil.rmtree(doomed)

  def _clear(self, staging: Path) -> None:
    """Removes what an interrupted save or deletion left, and makes room for the next."""
    for path in self.folder.glob('*'):
      if path.suffix in ('.saving', '.deleting'):
        shutil.rmtree(path)
    staging.mkdir(parents=True)

  def _committed(self) -> list[tuple[int, Path]]:
    """(step, folder) of the committed checkpoints, highest step first."""
    found = []
    for path in self.folder.glob('*'):
      if (match := FOLDER_NAME.fullmatch(path.name)) and path.is_dir():
        found.append((int(match[1]), path))
    return sorted(found, key=lambda item: (-item[0], item[1].suffix))

  def _regular(self, committed: list[tuple[int, Path]]) -> list[Path]:
    """One folder a step: the newest, and those before it that `every` does not pass over."""
    folders = dict(reversed(committed))  # of two of a step the first, which was saved later
    newest = max(folders, default=0)
    return [folders[step] for step in sorted(folders, reverse=True)
            if step == newest or not self.every or step % self.every == 0]

  def _failure(self, error: BaseException) -> CheckpointError:
    reason = ' '.join(str(error).split())[:500]
    full = re.search('No space|RESOURCE_EXHAUSTED|quota|too large', reason)
    cause = 'disk full, or a limit on file size' if full else 'cannot write'
    return CheckpointError(f'{self.folder}: step {self._saving} was not saved ({cause}: {reason}); '
                           'the checkpoints before it are intact')
