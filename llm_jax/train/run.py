"""A run: its stages one after the other. What is finished is skipped, what was interrupted goes on."""
import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from llm_jax import hf
from llm_jax.adapters.check import check_adapters
from llm_jax.checkpoints.folders import clear_interrupted, committed_folders, remove
from llm_jax.config.errors import ConfigError, located, require
from llm_jax.config.hub_names import HubName, hub_names, pinned
from llm_jax.config.optimizers import Optax
from llm_jax.config.packages import check_packages
from llm_jax.config.places import check_is_path, check_places
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.config.stage_init import HuggingFace
from llm_jax.data.dataset import training_texts
from llm_jax.data.tokenizers.base import Tokenizer, check_vocabulary, load_tokenizer, make_tokenizer
from llm_jax.modules.execution import Execution, dtype_of
from llm_jax.optim.optimizers import made_by_function
from llm_jax.runtime import activity, cpu, hub, processes, time_use
from llm_jax.runtime.buckets import BucketPath
from llm_jax.runtime.errors import explaining_full_disk
from llm_jax.runtime.files import write_atomic
from llm_jax.runtime.guard import Guard
from llm_jax.runtime.hardware import total_peak_flops
from llm_jax.runtime.lineage import code_digest, make_lineage, package_versions
from llm_jax.runtime.preemption import Preemption
from llm_jax.runtime.requests import leave, tell
from llm_jax.runtime.time_use import Use
from llm_jax.runtime.watchdog import Watchdog
from llm_jax.sharding.check import check_divides, row_shards
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import has_host_memory
from llm_jax.tracking.metrics import MetricsWriter, make_trackers, warn_of_damage
from llm_jax.tracking.run_folder import MAKE_ROOM, Workdir, workdir_at
from llm_jax.tracking.terminal import say
from llm_jax.tracking.tracker import TrackedRun
from llm_jax.train.branches import FLAG as BRANCH
from llm_jax.train.branches import make_branch, read_branches
from llm_jax.train.data import check_evaluations, check_unchanged_data, open_data, open_made, print_data
from llm_jax.train.evaluations import has_result
from llm_jax.train.frozen_models import check_tokenizers
from llm_jax.train.out_of_memory import naming_out_of_memory
from llm_jax.train.own_checkpoints import check_not_lost
from llm_jax.train.profile import FLAG as PROFILE
from llm_jax.train.profile import Window
from llm_jax.train.samples import are_there
from llm_jax.train.session import Session
from llm_jax.train.stage import build_stage, run_stage
from llm_jax.train.teacher_ids import with_teacher_ids

LINEAGE = 'lineage.json'
HUB = 'hub'  # its entry: what the run names on the hub, with the commits that it began with


def train(run: Run, workdir: pathlib.Path, only: str | None = None,
          at_end: Callable[[pathlib.Path], None] = lambda workdir: None, from_step: int | None = None,
          guard: Guard | None = None, profile: tuple[int, int] | None = None) -> None:
  """Runs or resumes the stages of `run` (or the one called `only`) in `workdir`. Every process of a run calls this.

  from_step: go back to this step of `only`, or else of the stage that is not finished, see `branches.py`; None: go on
    from the newest checkpoint.
  profile: (start, stop) of the steps that are traced of the first stage that is trained, see `profile.py`.
  at_end: called by the primary process with the workdir when the stages have ended, however that was.
  guard: what looks after this process; None, for one process inside of another program: made here.

  Raises:
    ConfigError: for what is wrong with the input, before anything compiles.
    Preempted: the machine asked the run to stop, and all is saved.
    OutOfMemory: the memory is too small; the message says what would help.
    Diverged: too many steps in a row were skipped.
    CheckpointError: a checkpoint cannot be written or believed.
  """
  if guard is not None:
    return _train(run, workdir, only, at_end, from_step, guard, profile)
  guard = Guard(Preemption(), Watchdog(run.stall_seconds))
  try:
    _train(run, workdir, only, at_end, from_step, guard, profile)
  finally:
    guard.close()


def _train(run: Run, workdir: pathlib.Path, only: str | None, at_end: Callable[[pathlib.Path], None],
           from_step: int | None, guard: Guard, profile: tuple[int, int] | None) -> None:
  time_use.begin_run()
  activity.begin('opens the run')
  check_packages(run)
  check_places(run)
  check_workdir(run, workdir, from_step, profile)
  check_optimizers(run)
  check_memory(run)
  check_shapes(run)
  go_back = lambda run: None if from_step is None else make_branch(workdir, run, only, from_step)
  with open_session(run, workdir, go_back, guard.preemption) as session:
    run = session.run
    stages = [stage for stage in run.stages if only in (None, stage.name) and not is_finished(session, stage)]
    for stage in stages:
      processes.on_first(lambda stage=stage: check_not_lost(workdir, run, stage, session.store(stage.name).steps()))
    check_starts(session, stages)
    for stage in stages:
      check_tokenizers(session, stage)
    window = None if profile is None else choose_window(profile, stages)
    activity.begin('opens the data', use=Use.DATA)
    data = open_data(session, stages)
    opened = [stage for stage in stages if stage.name in data]
    check_evaluations(session, opened, data)
    if session.primary:
      print_data(run, opened, data)
    try:
      for stage in stages:
        if stage.name not in data:
          open_made(session, stage, data)
          check_evaluations(session, [stage], data)
          if session.primary:
            print_data(run, [stage], data)
        check_unchanged_data(run, stage, data[stage.name])
        data[stage.name] = with_teacher_ids(session, stage, data[stage.name])
        built = build_stage(session, stage, data)
        with naming_out_of_memory(built):
          run_stage(built, window if stage is stages[0] else None)
    finally:
      activity.begin('ends the run')
      session.writer.time_use()
      if session.primary:
        at_end(workdir)
    processes.barrier('end of the run')  # a process that leaves early ends the others


# ---------------------------------------------------------------------------------------------- before the stages
def check_workdir(run: Run, workdir: pathlib.Path, from_step: int | None, profile: tuple[int, int] | None) -> None:
  """Refuses a URL that is no bucket, and of a run in a bucket what needs a file system."""
  if not isinstance(workdir, BucketPath):
    check_is_path('workdir', str(workdir))
    return
  hint = 'needs a workdir on a file system of this machine'
  require(from_step is None, BRANCH, from_step, hint)
  require(profile is None, PROFILE, profile, hint)
  for i, stage in enumerate(run.stages):
    require(not stage.samples, f'config.stages[{i}].data', stage.name, f'learning from samples {hint}')


def check_optimizers(run: Run) -> None:
  """Refuses a function that makes no optimizer."""
  for i, stage in enumerate(run.stages):
    if isinstance(stage.optimizer, Optax):
      with located(f'config.stages[{i}].optimizer'):
        made_by_function(stage.optimizer)


def check_memory(run: Run) -> None:
  """Refuses memory of the host where the devices cannot compute with it."""
  device = jax.local_devices()[0]
  if has_host_memory(device):
    return
  hint = f'{device.device_kind} computes with nothing in the memory of its host: use'
  for i, stage in enumerate(run.stages):
    path = f'config.stages[{i}]'
    require(stage.optimizer_memory != 'host', f'{path}.optimizer_memory', 'host', f"{hint} 'device'")
    require(stage.remat != 'offload', f'{path}.remat', 'offload', f"{hint} 'dots' or 'block'")


def check_shapes(run: Run) -> None:
  """Refuses shapes that the mesh does not divide, and adapters that do not fit the model."""
  devices = jax.device_count()
  with located('config'):
    for stage in run.stages:
      phases = stage.phases_over(row_shards(run.model, run.mesh, devices))
      for phase in phases:
        check_divides(run.model, run.mesh, phase.batch_size, phase.seq_len, devices, phase.microbatches, stage.name)
      last = phases[-1]
      if stage.pretraining_loss is not None:
        check_divides(run.model, run.mesh, stage.pretraining_loss.batch_size, last.seq_len, devices, last.microbatches,
                      f'{stage.name}.pretraining_loss')
      for evaluation in stage.evals:
        for seq_len in evaluation.row_lengths:
          check_divides(run.model, run.mesh, last.batch_size, seq_len, devices, last.microbatches,
                        f'{stage.name}.{evaluation.name}')
    check_adapters(run)


@contextlib.contextmanager
def open_session(run: Run, workdir: pathlib.Path, prepare: Callable[[Run], None] = lambda run: None,
                 preemption: Preemption | None = None) -> Iterator[Session]:
  """The services of the run in this process, with the workdir locked and bound to the run's configuration.

  What the run names on the hub is pinned: the session's run has commits.

  prepare: called by process 0 with that run, before the folder is bound.
  """
  with located('config'):
    mesh = make_mesh(run.mesh)
  execution = make_execution(run, mesh)
  # Where the peak is not known it is measured, before a mesh is set that would confine the measurement.
  peak_flops = total_peak_flops(mesh.devices.flat, execution.dtype)
  primary = jax.process_index() == 0
  folder = workdir_at(workdir)
  processes.on_first(folder.prepare)
  processes.check_shared(workdir)
  processes.agree('config', repr(run))
  processes.agree('code', f'{code_digest()} {package_versions()} {execution.dtype}')
  processes.connect_devices()
  with contextlib.ExitStack() as stack:
    processes.on_first(lambda: stack.enter_context(folder.lock(lost=end_process)))
    processes.on_first(lambda: make_room(folder))
    stack.enter_context(explaining_full_disk(workdir, 'a file of the run', MAKE_ROOM))
    processes.on_first(lambda: warn_of_damage(workdir))
    commits = dict(zip(hub_names(run), processes.on_first(lambda: pin(run, workdir)), strict=True))
    run = pinned(run, commits)
    processes.on_first(lambda: prepare(run))
    processes.on_first(lambda: bind(folder, run))
    preemption = stack.enter_context(preemption or Preemption())
    stack.enter_context(jax.set_mesh(mesh))
    tokenizer = open_tokenizer(run, workdir)
    lineage = make_lineage()
    branches = read_branches(workdir)
    stated = {**lineage.to_json(), 'branches': [branch.to_json() for branch in branches]}
    if commits:
      stated[HUB] = [{**dataclasses.asdict(name), 'commit': commit} for name, commit in commits.items()]
    if primary:
      write_atomic(workdir / LINEAGE, json.dumps(stated, indent=2) + '\n')
    trackers = make_trackers(TrackedRun(run, workdir, stated))
    writer = stack.enter_context(MetricsWriter(workdir, trackers, primary=primary))
    yield Session(run, workdir, mesh, execution, tokenizer, writer, preemption, lineage, peak_flops, primary, branches)


def end_process(reason: str) -> None:
  tell(f'error: {reason}')
  leave(1)


def make_room(folder: Workdir) -> None:
  """Removes what interrupted saves have left, which may fill the disk, and refuses one that is full nonetheless."""
  for stage in folder.path.glob('checkpoints/*'):
    clear_interrupted(stage)
  folder.clear_interrupted()
  folder.check_room()


def make_execution(run: Run, mesh: jax.sharding.Mesh) -> Execution:
  """How the run computes on this machine."""
  splits_rows = run.context_attention == 'ring' and mesh.shape['context'] > 1
  if jax.default_backend() == 'cpu' and splits_rows:
    cpu.disable_compilation_cache()
  dtype = dtype_of(run.dtype)
  device = mesh.devices.flat[0]
  is_slow = run.dtype == 'auto' and device.platform != 'cpu' and dtype == 'float32'
  if is_slow and jax.process_index() == 0:
    say(f"dtype='auto' is float32: {device.device_kind} has no units for bfloat16")
  return Execution(dtype, context_attention=run.context_attention, pipeline_microbatches=run.mesh.pipeline_microbatches)


def pin(run: Run, workdir: pathlib.Path) -> list[str]:
  """The commit of each thing that the run names on the hub, in the order of `hub_names`: the one that the run in this
  folder began with, as its lineage has it, or else the one that the name stands for now.

  Raises:
    ConfigError: there is no such thing, or the hub cannot be asked; one line says what to do.
  """
  noted = read_lineage(workdir).get(HUB, ()) if has_checkpoints(workdir) else ()
  kept = {HubName(each['kind'], each['name'], each['revision']): each['commit'] for each in noted}
  commits: list[str] = []
  for name in hub_names(run):
    with located('config'):
      commits.append(kept.get(name) or hub.commit_of(name))
  return commits


def read_lineage(workdir: pathlib.Path) -> dict[str, Any]:
  """What `lineage.json` says; nothing where it is gone or damaged."""
  try:
    found = json.loads((workdir / LINEAGE).read_bytes())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def has_checkpoints(workdir: pathlib.Path) -> bool:
  """Whether the folder is bound to its configuration."""
  return any(committed_folders(stage) for stage in workdir.glob('checkpoints/*'))


def bind(folder: Workdir, run: Run) -> None:
  """Ties the folder to the run's configuration, which begins with the first checkpoint: until then nothing is lost."""
  if not has_checkpoints(folder.path):
    for stage in run.stages:
      check_not_lost(folder.path, run, stage, ())
    (folder.path / 'config.json').unlink(missing_ok=True)
    with contextlib.suppress(OSError):
      remove(folder.path / 'tokenizer')
  folder.bind(run)


def open_tokenizer(run: Run, workdir: pathlib.Path) -> Tokenizer:
  """The run's tokenizer: made once (a trained one on the first stage's training text) and kept in the workdir."""
  folder = workdir / 'tokenizer'

  activity.begin('makes the tokenizer', holds_interpreter=True, use=Use.DATA)

  def make() -> None:
    if not folder.exists():
      make_tokenizer(run.tokenizer, lambda: training_texts(run.stages[0].data)).save(folder)

  with located('config.stages[0]'):
    processes.on_first(make)
  activity.begin('loads the tokenizer')
  tokenizer = load_tokenizer(folder)
  with located('config'):
    check_vocabulary(tokenizer, run.model.vocab_size)
  return tokenizer


# ---------------------------------------------------------------------------------------------- which stages run
def is_finished(session: Session, stage: Stage) -> bool:
  """Whether the stage's result is written and its last checkpoint is there, or was: once a later stage that comes from
  it has checkpoints of its own, those of the stage may be deleted."""
  recorded = has_result(session, stage.name)
  newest = session.store(stage.name).latest_valid() if recorded else None
  finished = newest is not None and newest.metadata.final
  if recorded and newest is None:
    finished = processes.on_first(lambda: has_later_checkpoints(session, stage))
  if finished and session.primary:
    say(f'{stage.name}: finished before, skipped')
  return finished


def has_later_checkpoints(session: Session, stage: Stage) -> bool:
  """Whether a stage that comes from this one has checkpoints."""
  later = [other.name for other in session.run.stages if stage in session.run.ancestors(other)]
  return any(session.store(name).steps() for name in later)


def check_starts(session: Session, stages: list[Stage]) -> None:
  """Refuses, before any stage runs, one that starts from what is not there and will not be made before it."""
  names = [stage.name for stage in stages]
  for stage in stages:
    has_begun = processes.on_first(lambda stage=stage: bool(session.store(stage.name).steps()))
    if has_begun:
      continue
    if isinstance(stage.init, HuggingFace):
      with located('config'):
        hf.check_pretrained(hub.model_folder(stage.init.folder, stage.init.revision), session.run.model,
                            resize_vocabulary=stage.init.resize_vocabulary)
    answering = [samples.stage for samples in stage.samples] if not are_there(session, stage) else []
    for parent in (*stage.parents, *answering):
      if parent not in names:
        check_parent_finished(session, stage, parent)


def choose_window(profile: tuple[int, int], stages: list[Stage]) -> Window:
  """The steps of the first stage that are traced."""
  window = Window(*profile)
  if not stages:
    raise ConfigError(PROFILE, str(window), 'every stage is finished: leave the flag out')
  window.check(stages[0], 0)
  return window


def check_parent_finished(session: Session, stage: Stage, parent: str) -> None:
  newest = session.store(parent).latest_valid()
  if newest is not None and newest.metadata.final:
    return
  lost = newest is None and has_result(session, parent)
  hint = ('lost its checkpoints: bring them back, or train it again in another workdir' if lost else
          'not finished: run that first')
  raise ConfigError('--stage', stage.name, f'it starts from stage {parent}, which has {hint}')
