"""The folders of a stage's checkpoints: how they are named, which are complete, and which are kept.

<step:08d>          a checkpoint that was complete when it got this name
<step:08d>.saving   one that is being written, or whose save was interrupted
<step:08d>.old      replaced by a later save of the same step, and not yet deleted
*.deleting          being deleted
"""
import dataclasses
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from llm_jax.checkpoints.kill_points import kill_point

COMMITTED_NAME = re.compile(r'(\d{8,})(\.old)?')
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
  for path in folder.glob('*'):
    step = step_of(path)
    if step is not None and path.is_dir():
      found.append(CommittedFolder(step, path))
  return sorted(found, key=lambda each: (-each.step, each.path.suffix))


@dataclasses.dataclass(frozen=True)
class Retention:
  """Which checkpoints are kept.

  keep: how many of the newest.
  every: 0, or only the newest and those at multiples of it are kept and averaged: then the same ones are there whether
    or not the run was stopped, and saved, in between.
  pinned: steps whose checkpoints stay beside them.
  """
  keep: int
  every: int
  pinned: frozenset[int]

  def regular(self, committed: Sequence[CommittedFolder]) -> list[CommittedFolder]:
    """One checkpoint a step, highest first: the newest, and those before it at multiples of `every`."""
    latest_of_step: dict[int, CommittedFolder] = {}
    for each in committed:
      latest_of_step.setdefault(each.step, each)  # the first of a step was saved later
    newest = max(latest_of_step, default=0)
    return [each for step, each in sorted(latest_of_step.items(), reverse=True)
            if step == newest or not self.every or step % self.every == 0]

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
  if final.exists():
    replaced = final.with_name(final.name + REPLACED)
    delete(replaced, step_of(final) or 0)
    final.rename(replaced)
  staging.rename(final)


def delete(path: Path, saving: int) -> None:
  """Takes the checkpoint's name away first, so that half of one is never seen.   saving: the step being saved."""
  if not path.exists():
    return
  doomed = path.with_name(path.name + DELETING)
  shutil.rmtree(doomed, ignore_errors=True)
  path.rename(doomed)
  kill_point('mid_gc', saving)
  shutil.rmtree(doomed)


def clear_interrupted(folder: Path) -> None:
  """Removes what interrupted saves and deletions have left."""
  for path in folder.glob('*'):
    if path.suffix in (SAVING, DELETING):
      shutil.rmtree(path)
