"""Checkpoints that are believed only when verified.

<folder>/<step:08d>/state/         arrays, written by Orbax
<folder>/<step:08d>/manifest.json  sha256 of every file there, the step, and the metadata that the caller states

A checkpoint is prepared under `<step>.saving` and committed by one rename, so that a folder with a plain name has been
complete once: whatever is missing from it later is damage, not an interrupted save.
"""
import contextlib
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from llm_jax.checkpoints.checkpoint import SavedCheckpoint, from_manifest, open_checkpoint
from llm_jax.checkpoints.folders import CommittedFolder, Retention, claim, committed_folders, delete, hold
from llm_jax.checkpoints.manifest import ReadEntries, read_manifest
from llm_jax.checkpoints.metadata import CheckpointMetadata
from llm_jax.checkpoints.saver import BackgroundSaver
from llm_jax.checkpoints.shared_hashing import on_first_with_help
from llm_jax.runtime.buckets import place
from llm_jax.runtime.errors import CheckpointError, one_line


def _print_warning(text: str) -> None:
  print(f'warning: {text}', file=sys.stderr, flush=True)


class CheckpointStore:
  """The checkpoints of one stage. Every process of a run makes the same calls; process 0 verifies with the help of
  the others, commits and deletes.

  keep, every, pinned: which checkpoints stay, see `Retention`.
  warn: called with a line of text for every checkpoint that is found damaged.
  check: raises CheckpointError for a whole checkpoint that does not belong here, such as one of another run.
  note_saved: called with the step of every checkpoint as soon as it is committed.
  """

  def __init__(self, folder: Path, keep: int = 1, warn: Callable[[str], None] = _print_warning, *, every: int = 0,
               pinned: Collection[int] = (), check: Callable[[SavedCheckpoint], None] = lambda checkpoint: None,
               note_saved: Callable[[int], None] = lambda step: None):
    self.folder = place(folder)
    self.warn = warn
    self.retention = Retention(keep, every, frozenset(pinned))
    self._check = check
    self._note_saved = note_saved
    self._keeps_all = False
    self._saver = BackgroundSaver(self.folder, on_commit=self._after_commit)

  def __enter__(self) -> 'CheckpointStore':
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    if kind is None:
      self.close()
    elif jax.process_count() == 1:
      self._saver.join()  # it is still good; of several processes the others may no longer answer

  # ---------------------------------------------------------------------------------------------- finding
  def steps(self) -> list[int]:
    """Steps of the committed checkpoints, highest first. By number, never by clock; nothing is verified."""
    return list(dict.fromkeys(each.step for each in committed_folders(self.folder)))

  def latest_valid(self) -> SavedCheckpoint | None:
    """The checkpoint of the highest step whose files are all as written; None when there are none at all.

    Raises:
      CheckpointError: when there are checkpoints and none is valid: training must not silently begin again.
    """
    while True:
      verified = on_first_with_help(self.folder, self._verify_newest_valid)
      if verified is None:
        return None
      try:
        return self._open(*verified)
      except CheckpointError:
        if (self.folder / verified[0]).is_dir():  # else a run that saves here has just replaced it
          raise

  @contextlib.contextmanager
  def hold_newest(self) -> Iterator[SavedCheckpoint | None]:
    """`latest_valid` for a reader beside a run that saves here: the run keeps the checkpoint while the body runs."""
    while True:
      found = self.latest_valid()
      if found is None:
        yield None
        return
      with hold(found.path) as is_held:
        if is_held:  # else it went before it could be held
          yield found
          return

  def newest(self, count: int) -> list[SavedCheckpoint]:
    """The checkpoints of the `count` highest steps, all verified, highest first.

    Raises:
      CheckpointError: when there are fewer, or one of them is damaged.
    """
    def verify_newest(read: ReadEntries) -> list[tuple[str, str]]:
      newest = self.retention.regular(committed_folders(self.folder))[:count]
      return [self._verify(each.path, read) for each in newest]

    verified = on_first_with_help(self.folder, verify_newest)
    if len(verified) < count:
      raise CheckpointError(f'{self.folder}: holds {len(verified)} checkpoints, {count} are to be averaged: save more '
                            'often (config.checkpoints.every) and keep them (config.checkpoints.keep)')
    return [self._open(name, stamp) for name, stamp in verified]

  def at(self, step: int) -> SavedCheckpoint:
    """The checkpoint of `step`, verified.

    Raises:
      CheckpointError: when there is none, or it is damaged.
    """
    def verify_step(read: ReadEntries) -> tuple[str, str] | None:
      for each in committed_folders(self.folder):
        if each.step == step:
          return self._verify(each.path, read)
      return None

    verified = on_first_with_help(self.folder, verify_step)
    if verified is None:
      others = ', '.join(map(str, self.steps())) or 'none'
      raise CheckpointError(f'{self.folder}: has no checkpoint of step {step}, only of {others}: '
                            'bring it back from a copy')
    return self._open(*verified)

  def _verify_newest_valid(self, read: ReadEntries) -> tuple[str, str] | None:
    problems: list[str] = []
    for each in self._candidates():
      try:
        with hold(each.path):  # a run that saves here more often than one is verified would always be ahead
          return self._verify(each.path, read)
      except CheckpointError as error:
        if not each.path.is_dir():  # the run that saves here has just replaced it
          continue
        problems.append(str(error))
        self.warn(f'checkpoint not used: {error}')
    if problems:
      raise CheckpointError(f'{self.folder}: none of its {len(problems)} checkpoints is valid: {"; ".join(problems)}. '
                            'Bring one back from a copy, or start in another workdir')
    return None

  def _candidates(self) -> Iterator[CommittedFolder]:
    """The committed checkpoints, highest step first; those that a run commits meanwhile come too, each once."""
    seen: set[Path] = set()
    while True:
      following = next((each for each in committed_folders(self.folder) if each.path not in seen), None)
      if following is None:
        return
      seen.add(following.path)
      yield following

  def _verify(self, path: Path, read: ReadEntries) -> tuple[str, str]:
    """Name and stamp of a checkpoint that process 0 has verified: what the others need in order to open it."""
    checkpoint = open_checkpoint(path, read)
    self._check(checkpoint)
    return path.name, checkpoint.stamp

  def _open(self, name: str, stamp: str) -> SavedCheckpoint:
    """On every process the checkpoint that process 0 has verified."""
    path = self.folder / name
    return from_manifest(path, read_manifest(path), stamp)

  # ---------------------------------------------------------------------------------------------- saving
  def save(self, step: int, state: Any, metadata: CheckpointMetadata, *, wait: bool = False, keep_all: bool = False,
           ) -> None:
    """Starts saving `state` (a pytree of jax arrays) as the checkpoint of `step`; returns when the arrays have left the
    devices, so that they may be donated. Waits first for the save before.

    wait: whether to return only when the checkpoint is committed.
    keep_all: whether those before it stay, however many: it may be a bad one.

    Raises:
      CheckpointError: when this save, or the one before, cannot be written. Earlier checkpoints stay as they are.
    """
    self.wait()
    self._keeps_all = keep_all
    self._saver.start(step, state, metadata)
    if wait:
      self.wait()

  def wait(self) -> None:
    """Waits until the save under way is committed.

    Raises:
      CheckpointError: on every process when the save failed on any of them.
    """
    self._saver.wait()

  def close(self) -> None:
    """Waits like `wait`, and frees the threads."""
    self._saver.close()

  def _after_commit(self, saved: int) -> None:
    """The checkpoint is safe: what goes wrong from here on is only told."""
    try:
      self._note_saved(saved)
    except OSError as error:
      self.warn(f'{self.folder}: step {saved} is saved, but not noted ({one_line(error)})')
    if self._keeps_all:
      return
    for each in self.retention.expired(committed_folders(self.folder), saved):
      try:
        with claim(each.path) as is_free:
          if is_free:  # else its turn comes with a later save
            delete(each.path, saved)
      except OSError as error:
        self.warn(f'{each.path} is no longer needed and cannot be deleted ({one_line(error)}): delete it yourself')
