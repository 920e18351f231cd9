"""Whether the checkpoints in a run's folder are those of the run, and all of them: neither foreign nor lost."""
import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from llm_jax.checkpoints.checkpoint import SavedCheckpoint
from llm_jax.config.errors import ConfigError
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.runtime.errors import CheckpointError
from llm_jax.tracking.metrics import read_metrics
from llm_jax.tracking.run_config import UnsafeChange, parse_config, unsafe_changes
from llm_jax.tracking.saved_steps import read_saved_steps
from llm_jax.train.branches import Branch

AT_THE_END = ('final', 'display', 'data')  # kinds of records that are written once a stage's last checkpoint is saved


def check_own(checkpoint: SavedCheckpoint, run: Run, stage: str, branches: Sequence[Branch]) -> None:
  """Refuses a checkpoint in the folder of `stage` that another run, or another stage, has written.

  Its manifest holds the configuration that it was trained under. That is the run's own, or what it was before the run
  went back to a later step.

  Raises:
    CheckpointError: naming the first field that differs.
  """
  metadata = checkpoint.metadata
  if metadata.stage != stage:
    raise CheckpointError(f'{checkpoint.path}: is one of stage {metadata.stage}')
  try:
    saved = parse_config(metadata.config)
  except ConfigError as error:
    raise CheckpointError(f'{checkpoint.path}: its configuration cannot be read ({error})') from error
  earlier = [branch.before for branch in branches if branch.comes_after(stage, checkpoint.step)]
  differences = [_first_difference(saved, candidate, stage) for candidate in (run, *earlier)]
  if all(differences):
    different = differences[0]
    assert different is not None
    raise CheckpointError(f'{checkpoint.path}: is of another run, with {different.path} = {different.old!r} instead of '
                          f'{different.new!r}')
  _check_position(checkpoint, run, stage)


def _first_difference(saved: Run, run: Run, stage: str) -> UnsafeChange | None:
  """Up to the stage: later ones have no part in it."""
  last = [each.name for each in run.stages].index(stage) + 1
  upto = lambda each: dataclasses.replace(each, stages=each.stages[:last])
  return next(unsafe_changes(saved, upto(saved), upto(run), 'config'), None)


def _check_position(checkpoint: SavedCheckpoint, run: Run, name: str) -> None:
  """Refuses a manifest whose place in the data is not the one of its step."""
  stage = next(each for each in run.stages if each.name == name)
  expected = stage.samples_after(checkpoint.step)
  data = checkpoint.metadata.data
  if data is not None and data.samples != expected:
    raise CheckpointError(f'{checkpoint.path}: states {data.samples} samples of data, and step {checkpoint.step} comes '
                          f'after {expected}')


def check_not_lost(workdir: pathlib.Path, run: Run, stage: Stage, steps: Sequence[int]) -> None:
  """Refuses a stage that was saved and has no checkpoint: it must not begin again without a word. Warns where only its
  newest are gone, which are trained again.

  Args:
    steps: of the stage's checkpoints, highest first.

  Raises:
    CheckpointError: naming the stage and how far it was.
  """
  noted = read_saved_steps(workdir).get(stage.name)
  folder = workdir / 'checkpoints' / stage.name
  if steps:
    if noted is not None and noted > steps[0]:
      logging.warning('%s: the checkpoint of step %d is gone, the newest is that of step %d: the steps between are '
                      'trained again', folder, noted, steps[0])
    return
  records = [record for record in read_metrics(workdir) if record['stage'] == stage.name]
  reached = max((record['step'] for record in records), default=0)
  if noted is not None or _was_saved(run, records):
    furthest = max(reached, noted or 0)
    raise CheckpointError(f'{folder}: stage {stage.name} had reached step {furthest} and its checkpoints are gone: '
                          f'bring them back, begin the stage again with --stage={stage.name} --from_step=0, or name '
                          'another workdir')


def _was_saved(run: Run, records: Sequence[dict[str, Any]]) -> bool:
  """Whether a stage's records show that it was saved: it goes on to train while it saves, and only waits for the save
  before; steps that are skipped put a save off."""
  trained = [record for record in records if record['kind'] == 'train']
  skipped = sum(1 for record in trained if record.get('skipped'))
  reached = max((record['step'] for record in trained), default=0)
  every = run.checkpoints.every
  is_far = every > 0 and reached > 2 * every + skipped
  return is_far or any(record['kind'] in AT_THE_END for record in records)
