"""Where a stage starts: its own newest checkpoint, else what its `init` names. Found and checked first, read later."""
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm_jax import hf
from llm_jax.checkpoints.average import average_params
from llm_jax.checkpoints.checkpoint import SavedCheckpoint
from llm_jax.config.errors import located
from llm_jax.config.implementation import load
from llm_jax.config.stage import Stage
from llm_jax.config.stage_init import Average, HuggingFace, Params, Resume, Scratch
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.objectives.frozen import Frozen, read_only
from llm_jax.runtime import hub, processes
from llm_jax.runtime.errors import CheckpointError
from llm_jax.train.beside_state import state_alone
from llm_jax.train.build import make_objective, store_param, store_params
from llm_jax.train.frozen_models import FoundModels, find_models
from llm_jax.train.session import Session
from llm_jax.train.state import TrainState, fresh_counters

COUNTERS = ('skipped', 'recent')  # of a training state
OLD_COUNTER = 'nonfinite'  # the only one that there was until spikes were skipped


@dataclasses.dataclass(frozen=True)
class Start:
  """Where a stage goes on from.

  read: () -> (the state to train, what its steps read and never change, in memory of its own).
  parent: the checkpoints or the folder that the stage started from, for its lineage; None: nothing.
  folder: digests of the Hugging Face folder that the stage started from, for its lineage; None: it started elsewhere.
  base: digest of what the stage's adapters are trained beside, for its lineage; None: it has none.
  teacher: digest of the model that the stage distils, for its lineage; None: it distils none.
  reward_models: digests of those that score its answers, for its lineage.
  resumed: the stage's own checkpoint that it goes on from, or None.
  """
  read: Callable[[], tuple[TrainState, Frozen]]
  parent: str | None = None
  folder: dict[str, str] | None = None
  base: str | None = None
  teacher: str | None = None
  reward_models: dict[str, str] = dataclasses.field(default_factory=dict)
  resumed: SavedCheckpoint | None = None

  @property
  def step(self) -> int:
    """Steps that are done."""
    return self.resumed.step if self.resumed else 0


class Starter:
  """Finds a stage's start, and refuses what can be refused before it is read.

  create: the jitted () -> TrainState of a stage from scratch.   abstract: its shapes, with shardings.

  Raises (all methods):
    CheckpointError: a checkpoint is damaged, was trained with another tokenizer, or its stage has not finished.
    ConfigError: the Hugging Face folder holds another model.
  """

  def __init__(self, session: Session, stage: Stage, create: Callable[[], TrainState], abstract: TrainState,
               optimizer: optax.GradientTransformation):
    self.session = session
    self.stage = stage
    self.create = create
    self.abstract = abstract
    self.optimizer = optimizer

  def start(self, newest: SavedCheckpoint | None) -> Start:
    """From the stage's own newest checkpoint where there is one, else from its `init`."""
    found = self.start_of_state(newest)
    models = self.read_beside
    if newest is not None:
      models.check_same_as(newest)

    def read() -> tuple[TrainState, Frozen]:
      state, frozen = found.read()
      return state, models.beside(frozen)
    teacher = None if models.teacher is None else models.teacher.digest
    return dataclasses.replace(found, read=read, teacher=teacher, reward_models=models.digests)

  def start_of_state(self, newest: SavedCheckpoint | None) -> Start:
    """The same, without the models that the stage reads beside what it starts from."""
    if newest is not None:
      return self.start_from_own(newest)
    match self.stage.init:
      case Scratch():
        return Start(lambda: (self.create(), Frozen()))
      case Resume(name):
        checkpoint = self.finished(name)
        check_form(checkpoint, self.abstract)
        return Start(lambda: (self.restore(checkpoint).from_first_step(), Frozen()), describe(checkpoint))
      case Params() | Average() | HuggingFace():
        return self.start_from_params()

  def start_from_own(self, newest: SavedCheckpoint) -> Start:
    """The stage was interrupted: it goes on from its own newest checkpoint."""
    check_tokenizer(newest, self.session.tokenizer)
    lineage = newest.metadata.lineage
    recorded = lineage.folder
    self.check_folder(recorded)
    check_form(newest, self.abstract)
    read_params = self.initial_params()[0] if self.is_referenced else lambda: None

    def read() -> tuple[TrainState, Frozen]:
      frozen = self.freeze(read_params())
      self.check_folder(recorded)  # again: the folder may have changed while the step was compiled
      return self.restore(newest), frozen
    return Start(read, lineage.parent, recorded, resumed=newest)

  def start_from_params(self) -> Start:
    """The first step of a stage that takes parameters over; its optimizer starts afresh."""
    read_params, parent = self.initial_params()
    init = self.stage.init
    recorded = processes.on_first(lambda: hf.folder_digests(folder_of(init))) if isinstance(init, HuggingFace) else None

    def read() -> tuple[TrainState, Frozen]:
      params = read_params()
      self.check_folder(recorded)
      frozen = self.freeze(params)
      return self.from_params(params), frozen
    return Start(read, parent, recorded)

  def restore(self, checkpoint: SavedCheckpoint) -> TrainState:
    """The state of a checkpoint; one of an older version has none of the counters, which begin anew."""
    saved, abstract = without_counters(checkpoint, self.abstract)
    state = saved.restore(abstract)
    if abstract is self.abstract:
      return state
    shardings = {name: jax.tree.map(lambda leaf: leaf.sharding, getattr(self.abstract, name)) for name in COUNTERS}
    return dataclasses.replace(state, **jax.jit(fresh_counters, out_shardings=shardings)())

  def check_folder(self, recorded: dict[str, str] | None) -> None:
    """Refuses a Hugging Face folder whose digests are no longer those that were recorded at the stage's start."""
    if recorded is not None and isinstance(self.stage.init, HuggingFace):
      check_folder(folder_of(self.stage.init), recorded)

  @property
  def is_trained(self) -> bool:
    """Whether the stage starts from parameters that were trained before."""
    return not isinstance(self.stage.init, Scratch)

  @property
  def is_referenced(self) -> bool:
    """Whether the objective compares with the parameters that the stage starts from."""
    return self.stage.objective.has_reference

  @property
  def abstract_frozen(self) -> Frozen:
    """The shapes of what the stage's steps read and never change."""
    reference = self.abstract_reference if self.is_referenced else None
    return self.read_beside.abstract_beside(Frozen(reference=reference))

  @functools.cached_property
  def read_beside(self) -> FoundModels:
    """The models that the stage reads beside what it starts from."""
    return find_models(self.session, self.stage)

  @property
  def abstract_reference(self) -> Any:
    return read_only(self.without_own(self.abstract.params), self.session.execution.compute_dtype)

  def freeze(self, params: Any) -> Frozen:
    """What the stage's steps read and never change, in memory of its own, for they write to the state's.

    params: what the stage starts from; read only where the objective compares with it.
    """
    if not self.is_referenced:
      return Frozen()
    dtype = self.session.execution.compute_dtype
    store = jax.jit(lambda params: read_only(jax.tree.map(jnp.copy, params), dtype),
                    out_shardings=jax.tree.map(lambda leaf: leaf.sharding, self.abstract_reference))
    return Frozen(reference=store(self.without_own(params)))

  def without_own(self, params: Any) -> Any:
    """Parameters without those of the objective, such as a critic's, which no reference has."""
    return {name: tree for name, tree in params.items() if name not in self.own_parameters}

  def from_params(self, params: Any) -> TrainState:
    """A fresh state."""
    def make(params: Any) -> TrainState:
      return TrainState.create(params, self.optimizer, self.stage.ema is not None)
    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, self.abstract))(params)

  def initial_params(self) -> tuple[Callable[[], Any], str]:
    """What reads the parameters that the stage starts from, and where they are from, for its lineage."""
    init = self.stage.init
    match init:
      case Scratch():
        raise ValueError(f'{self.stage.name} starts from scratch: it takes no parameters over')
      case Params(name) | Resume(name):
        checkpoint = self.finished(name)
        read = lambda: self.read_finished(name, checkpoint)
        parent = describe(checkpoint)
      case Average():
        checkpoints = [checkpoint for checkpoint, _ in self.averaged]
        weights = [weight for _, weight in self.averaged]
        read = lambda: average_params(checkpoints, self.held_by(*checkpoints), weights)
        parent = ' + '.join(describe(checkpoint, weight) for checkpoint, weight in self.averaged)
      case HuggingFace(name, resize, revision):
        with located('config'):
          folder = folder_of(init)
          hf.check_pretrained(folder, self.session.run.model, resize_vocabulary=resize)
        read = lambda: self.pretrained(folder, resize)
        parent = f'hf:{name}' if init.hub_name is None else f'hf:{name}@{revision}'
    return lambda: self.as_stored(self.with_own_parameters(read())), parent

  def as_stored(self, params: Any) -> Any:
    """The parameters as the stage stores them; no copy where they are."""
    same = jax.tree.map(lambda leaf, wanted: leaf.dtype == wanted.dtype, params, self.abstract.params)
    if jax.tree.all(same):
      return params
    shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract.params)
    return jax.jit(lambda params: store_params(params, self.stage), out_shardings=shardings)(params)

  def read_finished(self, name: str, checkpoint: SavedCheckpoint) -> Any:
    """The parameters of an earlier stage, with its adapters merged where this stage trains all of them."""
    earlier = next(stage for stage in self.session.run.stages if stage.name == name)
    if earlier.adapters is not None and self.stage.adapters is None:
      return self.session.saved_models().whole(earlier, checkpoint)
    return checkpoint.read_best(checkpoint.as_saved(self.held_by(checkpoint)))

  def pretrained(self, folder: str, resize: bool) -> Any:
    with located('config'):
      return hf.load_pretrained(folder, self.session.mesh, config=self.session.run.model, resize_vocabulary=resize,
                                store=self.store_leaf)[1]

  @property
  def store_leaf(self) -> Callable[[str, Any], Any] | None:
    """What makes of a float32 parameter what the stage stores; None where that is the same."""
    kind = self.stage.parameters
    return None if kind == 'float32' else functools.partial(store_param, kind=kind)

  def with_own_parameters(self, params: Any) -> Any:
    """With fresh values of the objective's own parameters where what the stage starts from has none of them."""
    missing = [name for name in self.own_parameters if name not in params]
    if not missing:
      return params
    objective = make_objective(self.stage, self.session.transformer(self.stage), self.stage.data)

    def create(params: Any) -> Any:
      return objective.start_parameters({name: self.create().params[name] for name in missing}, params)

    shardings = {name: jax.tree.map(lambda leaf: leaf.sharding, self.abstract.params[name]) for name in missing}
    return {**params, **jax.jit(create, out_shardings=shardings)(params)}

  @functools.cached_property
  def averaged(self) -> list[tuple[SavedCheckpoint, float]]:
    """The checkpoints whose mean the stage starts from with their weights, the last of them last; else none."""
    init = self.stage.init
    if not isinstance(init, Average):
      return []
    if isinstance(init.checkpoints, str):
      self.finished(init.checkpoints)
      newest = self.session.store(init.checkpoints).newest(init.last or 0)
      return [(self.without_others_parameters(checkpoint), 1.0) for checkpoint in reversed(newest)]
    return [(self.finished(named.stage, named.step), named.weight) for named in init.checkpoints]

  def last_alone(self) -> Iterator[tuple[str, Any]]:
    """Of the last checkpoint that is averaged: ('last_checkpoint', its parameters), and ('last_ema', their moving
    average) where one was kept. Nothing of a stage that starts from no average."""
    if not self.averaged:
      return
    checkpoint, _ = self.averaged[-1]
    abstract = self.held_by(checkpoint)
    if abstract.keys() == self.abstract.params.keys():  # else it lacks some of the objective's own
      yield 'last_checkpoint', checkpoint.read(('params',), checkpoint.as_saved(abstract, 'params'))
      if checkpoint.averaged:
        yield 'last_ema', checkpoint.read(('ema',), checkpoint.as_saved(abstract, 'ema'))

  def finished(self, name: str, step: int | None = None) -> SavedCheckpoint:
    """The last checkpoint of an earlier stage, or that of `step`."""
    store = self.session.store(name)
    checkpoint = store.latest_valid()
    if checkpoint is None or not checkpoint.metadata.final:
      raise CheckpointError(f'stage {self.stage.name} starts from stage {name}, which has not finished or has lost its '
                            'checkpoints: run it first, or bring them back')
    if step not in (None, checkpoint.step):
      checkpoint = store.at(step)
    check_tokenizer(checkpoint, self.session.tokenizer)
    return self.without_others_parameters(checkpoint)

  def without_others_parameters(self, checkpoint: SavedCheckpoint) -> SavedCheckpoint:
    """An earlier stage's checkpoint. What its objective alone had, such as the head of other classes, is left out."""
    trained_in = checkpoint.metadata.stage
    earlier = next(stage for stage in self.session.run.stages if stage.name == trained_in)
    own = load(earlier.objective).own_parameters
    has_same_classes = earlier.data.labels == self.stage.data.labels
    if has_same_classes and own == self.own_parameters:
      return checkpoint
    leaves = dict(checkpoint.leaves)
    for path in checkpoint.leaves:
      if any(f'/{name}/' in path for name in own):  # the optimizer has some for it too
        del leaves[path]
    return dataclasses.replace(checkpoint, leaves=leaves)

  def held_by(self, *checkpoints: SavedCheckpoint) -> Any:
    """The abstract parameters of the stage, without those of the objective that one of the checkpoints lacks."""
    held = dict(self.abstract.params)
    for name in self.own_parameters:
      if not all(has_parameters(checkpoint, name) for checkpoint in checkpoints):
        del held[name]
    return held

  @property
  def own_parameters(self) -> tuple[str, ...]:
    """Names of the parameters that belong to the stage's objective."""
    return load(self.stage.objective).own_parameters


def has_parameters(checkpoint: SavedCheckpoint, name: str) -> bool:
  return any(path.startswith(f'params/{name}/') for path in checkpoint.leaves)


def check_form(checkpoint: SavedCheckpoint, abstract: TrainState) -> None:
  """Refuses a checkpoint that `Starter.restore` could not read; nothing is read."""
  saved, wanted = without_counters(checkpoint, abstract)
  saved.check(wanted)


def without_counters(checkpoint: SavedCheckpoint, abstract: TrainState) -> tuple[SavedCheckpoint, TrainState]:
  """Both as they are, of the checkpoint the state alone; where it is of a version before the counters, both without
  them."""
  checkpoint = state_alone(checkpoint)
  if OLD_COUNTER not in checkpoint.leaves:
    return checkpoint, abstract
  leaves = {name: leaf for name, leaf in checkpoint.leaves.items() if name != OLD_COUNTER}
  return dataclasses.replace(checkpoint, leaves=leaves), dataclasses.replace(abstract, **dict.fromkeys(COUNTERS))


def describe(checkpoint: SavedCheckpoint, weight: float = 1.0) -> str:
  """`stage/step` or `2 x stage/step`, as the lineage has it."""
  name = f'{checkpoint.metadata.stage}/{checkpoint.step}'
  return name if weight == 1 else f'{weight:g} x {name}'


def folder_of(init: HuggingFace) -> str:
  """The folder with the weights; of a model on the hub that in the hub's cache."""
  return str(hub.model_folder(init.folder, init.revision))


def check_folder(folder: str, recorded: dict[str, str]) -> None:
  """Refuses a folder that holds something else than what the stage started from. A folder that is gone is not
  compared: where it is needed once more, reading it says so."""
  now = processes.on_first(lambda: hf.folder_digests(folder) if pathlib.Path(folder).is_dir() else recorded)
  changed = [name for name in sorted(now.keys() | recorded.keys()) if now.get(name) != recorded.get(name)]
  if changed:
    show = lambda found: ', '.join(f'{name} {found[name][:12] if name in found else "absent"}' for name in changed)
    raise CheckpointError(f'{folder} has changed since the stage began with it: then {show(recorded)}; now '
                          f'{show(now)}: bring the first one back, or start in another workdir')


def check_tokenizer(checkpoint: SavedCheckpoint, tokenizer: Tokenizer) -> None:
  if checkpoint.metadata.tokenizer != tokenizer.fingerprint:
    raise CheckpointError(f'{checkpoint.path} was trained with tokenizer {checkpoint.metadata.tokenizer}, this run '
                          f'has {tokenizer.fingerprint}: bring the first one back, or start in another workdir')
