"""Going back: a run that goes on from an earlier step of a stage, under another learning rate, optimizer or clipping.

branches/<n>/branch.json    where the run went back to, when, and what was changed; n counts from 1
branches/<n>/config.json    the configuration before
branches/<n>/metrics.jsonl  the records before
branches/<n>/trackers/      the ids of the services' runs before: a branch has others
branches/<n>/checkpoints/   the stage's checkpoints after that step, which the run no longer takes for its own
"""
import dataclasses
import json
import pathlib
import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax import paths
from llm_jax.checkpoints.folders import committed_folders
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config.errors import ConfigError, require
from llm_jax.config.run import Run
from llm_jax.modules.parameters import parameter_shapes
from llm_jax.optim.optimizers import make_optimizer
from llm_jax.runtime.files import write_atomic
from llm_jax.tracking.metrics import METRICS, MetricsWriter, read_metrics
from llm_jax.tracking.run_config import NAME as CONFIG
from llm_jax.tracking.run_config import UnsafeChange, changes_between, read_config, write_config
from llm_jax.tracking.saved_steps import forget_saved_step, note_saved_step
from llm_jax.tracking.service import FOLDER as TRACKERS

FOLDER = 'branches'
RECORD = 'branch.json'
MAKING = 'making'  # the name of one whose checkpoints are being moved
FLAG = '--from_step'


@dataclasses.dataclass(frozen=True)
class Branch:
  """One return to an earlier step.

  stage, step: where the run went on from.   started: local time with its offset.
  changes: what was changed, each field with its old and new value.
  before: the run's configuration until then.
  """
  stage: str
  step: int
  started: str
  changes: dict[str, list[Any]]
  before: Run

  def to_json(self) -> dict[str, Any]:
    """All but the configuration, as it stands in `branch.json` and in lineages."""
    return {'stage': self.stage, 'step': self.step, 'started': self.started, 'changes': self.changes}

  def comes_after(self, stage: str, step: int) -> bool:
    """Whether the run had passed this step of a stage when it went back, and kept it."""
    names = [each.name for each in self.before.stages]
    if stage not in names:
      return False
    return (names.index(stage), step) <= (names.index(self.stage), self.step)


def read_branches(workdir: pathlib.Path) -> tuple[Branch, ...]:
  """The branches of a run in their order.

  Raises:
    ConfigError: the record of one is damaged.
  """
  found: list[Branch] = []
  while (folder := workdir / FOLDER / str(len(found) + 1)).is_dir():
    try:
      record = json.loads((folder / RECORD).read_bytes())
      found.append(Branch(before=read_config(folder), **record))
    except (OSError, ValueError, TypeError) as error:
      raise ConfigError('workdir', str(workdir), f'{folder / RECORD} is damaged ({error}): bring it back from a copy, '
                        'or name another workdir') from error
  return tuple(found)


def make_branch(workdir: pathlib.Path, run: Run, stage: str | None, step: int) -> None:
  """Makes a run's folder go on from `step` of a stage under the configuration `run`.

  What came after the step is moved away. A branch that is there already, as when its command is started again, stays as
  it is.

  Args:
    stage: None: the first one without a result.

  Raises:
    ConfigError: there is no such step, the stage is finished, or the configuration differs in what a branch must not
      change; then nothing is changed.
  """
  require((workdir / CONFIG).is_file(), FLAG, step, f'{workdir} holds no run yet: leave the flag out')
  old = read_config(workdir)
  name = _chosen_stage(workdir, run, stage, step)
  changes = list(changes_between(old, run))
  made = read_branches(workdir)
  is_made = bool(made) and (made[-1].stage, made[-1].step) == (name, step) and not changes
  if is_made:
    return
  _check_changes(changes, run, name)
  _check_step(workdir, name, step)
  if step > 0:
    _check_optimizer_state(old, run, name)
  stated = {change.path: [_plain(change.old), _plain(change.new)] for change in changes}
  branch = Branch(name, step, time.strftime('%Y-%m-%d %H:%M:%S%z'), stated, old)
  _move_away(workdir, branch, number=len(made) + 1)
  write_config(workdir, run)


def _chosen_stage(workdir: pathlib.Path, run: Run, name: str | None, step: int) -> str:
  """The stage that goes back: one without a result, for later stages may come from one that has it."""
  finished = {record['stage'] for record in read_metrics(workdir, 'final')}
  names = [stage.name for stage in run.stages]
  unfinished = []
  for i, each in enumerate(names):
    is_lost = not any(CheckpointStore(_folder_of(workdir, later)).steps() for later in names[i:])
    if each not in finished or is_lost:
      unfinished.append(each)
  if name is None:
    require(bool(unfinished), FLAG, step, 'all stages are finished: name another workdir')
    return unfinished[0]
  require(name in unfinished, FLAG, step, f'stage {name} is finished: append a stage that starts from it, or name '
          'another workdir')
  return name


def _check_changes(changes: list[UnsafeChange], run: Run, stage: str) -> None:
  first = [each.name for each in run.stages].index(stage)
  allowed = tuple(f'config.stages[{i}].' for i in range(first, len(run.stages)))
  for change in changes:
    if not change.in_branch or not change.path.startswith(allowed):
      raise ConfigError(change.path, change.new, f'the run was started with {change.old!r}, and a branch changes only '
                        f'learning_rate, optimizer, clip_norm and skip_spikes of stage {stage} or later ones: set it '
                        'back, or name another workdir')


def _check_step(workdir: pathlib.Path, stage: str, step: int) -> None:
  """Step 0 is where the stage began, which needs no checkpoint."""
  if step == 0:
    return
  store = CheckpointStore(_folder_of(workdir, stage))
  steps = store.steps()
  saved = ', '.join(map(str, steps)) or 'none'
  require(step in steps, FLAG, step, f'stage {stage} has no checkpoint of that step, only of {saved}: use one of them, '
          'or 0 for where the stage began')
  store.at(step)  # raises CheckpointError for a damaged one


def _check_optimizer_state(old: Run, run: Run, stage: str) -> None:
  """Refuses an optimizer whose state has another form than the checkpoint's, before anything is moved."""
  before, after = (_optimizer_state(each, stage) for each in (old, run))
  if before != after:
    number = [each.name for each in run.stages].index(stage)
    found, was = (each.stages[number].optimizer for each in (run, old))
    raise ConfigError(f'config.stages[{number}].optimizer', found, f'its state has another form than that of {was}, '
                      f'which the checkpoint holds: keep its kind and its moments, or use {FLAG}=0')


def _optimizer_state(run: Run, stage: str) -> Any:
  """The form of the stage's optimizer state: its tree, and the shapes and types of its arrays."""
  [optimizer] = [each.optimizer for each in run.stages if each.name == stage]
  shapes = parameter_shapes(run.model).items()
  params = paths.nest({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes})
  state = jax.eval_shape(lambda: make_optimizer(optimizer, params).init(params))
  return jax.tree.structure(state), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]


def _move_away(workdir: pathlib.Path, branch: Branch, number: int) -> None:
  """Moves what comes after the branch's step into the folder of the branch, which gets its name last: a kill on the way
  leaves a run that the same command brings to the end."""
  folder = workdir / FOLDER / MAKING
  checkpoints = _folder_of(folder, branch.stage)
  checkpoints.mkdir(parents=True, exist_ok=True)
  write_config(folder, branch.before)
  is_first_try = not (folder / METRICS).exists()
  if is_first_try and (workdir / METRICS).exists():
    write_atomic(folder / METRICS, (workdir / METRICS).read_bytes())
  for committed in committed_folders(_folder_of(workdir, branch.stage)):
    if committed.step > branch.step:
      shutil.move(committed.path, checkpoints / committed.path.name)
  if (workdir / TRACKERS).is_dir() and not (folder / TRACKERS).exists():
    shutil.move(workdir / TRACKERS, folder / TRACKERS)
  if branch.step:
    note_saved_step(workdir, branch.stage, branch.step)
  else:
    forget_saved_step(workdir, branch.stage)
  with MetricsWriter(workdir) as writer:
    writer.rewind(branch.stage, branch.step)
  write_atomic(folder / RECORD, json.dumps(branch.to_json(), indent=2) + '\n')
  folder.rename(folder.with_name(str(number)))


def _folder_of(workdir: pathlib.Path, stage: str) -> pathlib.Path:
  return workdir / 'checkpoints' / stage


def _plain(value: Any) -> Any:
  """A value of a configuration as JSON, a part of one as its text."""
  return value if isinstance(value, str | int | float | bool | None) else repr(value)
