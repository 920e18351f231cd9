"""The folders of a stage's checkpoints: how they are named, which are complete, and which are kept.

<step:08d>          a checkpoint that was complete when it got this name
<step:08d>.saving   one that is being written, or whose save was interrupted
<step:08d>.old      replaced by a later save of the same step, and not yet deleted
*.deleting          being deleted

In a bucket nothing has a second name. A checkpoint is written where it stays, <step:08d>, or <step:08d>.1 where that
is taken, and is one as soon as it has its manifest, which is written last and deleted first.

A checkpoint may have been moved elsewhere and linked back: then the link is what is renamed and deleted, and what it
leads to stays. Other names are not ours, and are left alone.
"""
import contextlib
import dataclasses
import fcntl
import os
import re
from collections.abc import Collection, Generator, Sequence
from pathlib import Path

from llm_jax.checkpoints.kill_points import kill_point
from llm_jax.checkpoints.manifest import NAME as MANIFEST
from llm_jax.runtime.buckets import BucketPath
from llm_jax.runtime.files import sync_folder
from llm_jax.runtime.trees import remove_tree

COMMITTED_NAME = re.compile(r'(\d{8,})(\.old|\.\d+)?')
LEFTOVER_NAME = re.compile(r'\d{8,}(\.old)?(\.saving|\.deleting)')
SAVING = '.saving'
REPLACED = '.old'
DELETING = '.deleting'


@dataclasses.dataclass(frozen=True)
class CommittedFolder:
  """A checkpoint that was complete once; whether it still is, `manifest.verify` says."""
  step: int
  path: Path


def folder_name(step: int) -> str:
  return f'{step:08d}'


def step_of(path: Path) -> int | None:
  """The step that a committed checkpoint's name states; None for any other name."""
  match = COMMITTED_NAME.fullmatch(path.name)
  return int(match[1]) if match else None


def committed_folders(folder: Path) -> list[CommittedFolder]:
  """The committed checkpoints, highest step first; of two of one step the one that was saved later comes first."""
  found: list[CommittedFolder] = []
  for path in _complete_folders(folder):
    step = step_of(path)
    if step is not None:
      found.append(CommittedFolder(step, path))
  return sorted(found, key=lambda each: (-each.step, _age(each.path)))


def _complete_folders(folder: Path) -> list[Path]:
  if isinstance(folder, BucketPath):
    return [path.parent for path in folder.glob(f'*/{MANIFEST}')]
  return [path for path in folder.glob('*') if path.is_dir()]


def _half_written(folder: BucketPath) -> list[Path]:
  complete = _complete_folders(folder)
  return [path for path in folder.glob('*') if step_of(path) is not None and path not in complete]


def _age(path: Path) -> int:
  """Of two checkpoints of one step, the one that was saved earlier has the higher one."""
  number = path.suffix.removeprefix('.')
  if number == REPLACED.removeprefix('.'):
    return 1
  return -int(number or 0)


def staging_folder(folder: Path, step: int) -> Path:
  """Where a checkpoint is written before it is committed; nothing is there."""
  if not isinstance(folder, BucketPath):
    return folder / f'{folder_name(step)}{SAVING}'
  taken = [each.path for each in committed_folders(folder) if each.step == step]
  return folder / (f'{folder_name(step)}.{1 - _age(taken[0])}' if taken else folder_name(step))


@dataclasses.dataclass(frozen=True)
class Retention:
  """Which checkpoints are kept.

  keep: how many of the newest.
  every: 0, or only the newest and the first at or after each multiple of it are kept and averaged: then the same ones
    are there whether or not the run was stopped, and saved, in between.
  pinned: steps whose checkpoints stay beside them.
  """
  keep: int
  every: int
  pinned: frozenset[int]

  def regular(self, committed: Sequence[CommittedFolder]) -> list[CommittedFolder]:
    """One checkpoint a step, highest first: the newest, and those before it that were due."""
    latest_of_step: dict[int, CommittedFolder] = {}
    for each in committed:
      latest_of_step.setdefault(each.step, each)  # the first of a step was saved later
    chosen = set(latest_of_step)
    if self.every and chosen:
      chosen = {max(chosen), *self._due(chosen)}
    return [latest_of_step[step] for step in sorted(chosen, reverse=True)]

  def _due(self, steps: Collection[int]) -> list[int]:
    """Of each interval of `every` steps the first, which is late where steps were skipped when it was due."""
    first_of_interval: dict[int, int] = {}
    for step in sorted(steps):
      first_of_interval.setdefault(step // self.every, step)
    return [step for interval, step in first_of_interval.items() if interval > 0]

  def expired(self, committed: Sequence[CommittedFolder], saved: int) -> list[CommittedFolder]:
    """What may be deleted once step `saved` is committed.

    Checkpoints of higher steps were found damaged when this run started, or it would have gone on from them: they do
    not count as the newest, and stay until they are overwritten.
    """
    candidates = [each for each in committed if each.step <= saved]
    kept = self.regular(candidates)[:self.keep]
    return [each for each in candidates if each not in kept and each.step not in self.pinned]


def commit(staging: Path, final: Path) -> None:
  """Gives a complete checkpoint its name; one that has the name already is moved away first."""
  if isinstance(staging, BucketPath):  # its manifest has done so
    return
  if os.path.lexists(final):
    replaced = final.with_name(final.name + REPLACED)
    delete(replaced, step_of(final) or 0)
    final.rename(replaced)
    if not replaced.is_dir():  # a file, or a link to nowhere: no checkpoint whose turn to be deleted would come
      remove(replaced)
  staging.rename(final)
  sync_folder(final.parent)


def delete(path: Path, saving: int) -> None:
  """Takes the checkpoint's name away first, so that half of one is never seen.   saving: the step being saved."""
  if isinstance(path, BucketPath):
    (path / MANIFEST).unlink(missing_ok=True)
    kill_point('mid_gc', saving)
    path.remove_all()
    return
  if not os.path.lexists(path):
    return
  doomed = path.with_name(path.name + DELETING)
  remove(doomed)
  path.rename(doomed)
  kill_point('mid_gc', saving)
  remove(doomed)


@contextlib.contextmanager
def hold(path: Path) -> Generator[bool]:
  """While the body runs, no other process deletes the checkpoint (see `claim`).

  Gives False where one is deleting it or has done so. A file system without locks, or a bucket, holds nothing, and
  gives True.
  """
  if isinstance(path, BucketPath):
    yield (path / MANIFEST).is_file()
    return
  with contextlib.ExitStack() as stack:
    try:
      file = stack.enter_context(open(path / MANIFEST, 'rb'))
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
      yield False
      return
    except OSError:
      pass
    yield path.is_dir()


@contextlib.contextmanager
def claim(path: Path) -> Generator[bool]:
  """While the body runs, nobody holds the checkpoint; gives False where somebody does (see `hold`)."""
  if isinstance(path, BucketPath):
    yield True
    return
  with contextlib.ExitStack() as stack:
    try:
      file = stack.enter_context(open(path / MANIFEST, 'rb'))
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield False
      return
    except OSError:  # it has no manifest, or its file system no locks
      pass
    yield True


def clear_interrupted(folder: Path) -> None:
  """Removes what interrupted saves and deletions have left. What cannot be removed stays: the next save shows whether
  it is in the way."""
  half_written = _half_written(folder) if isinstance(folder, BucketPath) else ()
  for path in folder.glob('*'):
    if path in half_written or LEFTOVER_NAME.fullmatch(path.name):
      with contextlib.suppress(OSError):
        remove(path)


def remove(path: Path) -> None:
  """Removes a folder and all in it, or a file, or a link and not what it leads to; nothing where there is nothing."""
  if isinstance(path, BucketPath):
    path.remove_all()
  elif path.is_symlink() or path.is_file():
    path.unlink()
  elif path.exists():
    remove_tree(path)
