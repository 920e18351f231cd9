"""Where a stage starts: its own newest checkpoint, else what its `init` names. Found and checked first, read later."""
import dataclasses
import functools
import hashlib
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
from llm_jax.config.objectives import Referenced
from llm_jax.config.stage import Stage
from llm_jax.config.stage_init import Average, HuggingFace, Params, Resume, Scratch
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.objectives.classification import HEAD
from llm_jax.runtime import processes
from llm_jax.runtime.errors import CheckpointError
from llm_jax.train.session import Session
from llm_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Start:
  """Where a stage goes on from.

  read: () -> (the state to train, the parameters that the objective compares with in memory of their own or None).
  parent: the checkpoints or the folder that the stage started from, for its lineage; None: nothing.
  folder: digests of the Hugging Face folder that the stage started from, for its lineage; None: it started elsewhere.
  resumed: the stage's own checkpoint that it goes on from, or None.
  """
  read: Callable[[], tuple[TrainState, Any]]
  parent: str | None = None
  folder: dict[str, str] | None = None
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
    if newest is not None:
      return self.start_from_own(newest)
    match self.stage.init:
      case Scratch():
        return Start(lambda: (self.create(), None))
      case Resume(name):
        checkpoint = self.finished(name)
        checkpoint.check(self.abstract)
        return Start(lambda: (from_first_step(checkpoint.restore(self.abstract)), None), describe(checkpoint))
      case Params() | Average() | HuggingFace():
        return self.start_from_params()

  def start_from_own(self, newest: SavedCheckpoint) -> Start:
    """The stage was interrupted: it goes on from its own newest checkpoint."""
    check_tokenizer(newest, self.session.tokenizer)
    lineage = newest.metadata.lineage
    recorded = lineage.folder
    self.check_folder(recorded)
    newest.check(self.abstract)
    read_reference = self.initial_params()[0] if self.is_referenced else lambda: None

    def read() -> tuple[TrainState, Any]:
      reference = read_reference()
      self.check_folder(recorded)  # again: the folder may have changed while the step was compiled
      return newest.restore(self.abstract), reference
    return Start(read, lineage.parent, recorded, newest)

  def start_from_params(self) -> Start:
    """The first step of a stage that takes parameters over; its optimizer starts afresh."""
    read_params, parent = self.initial_params()
    init = self.stage.init
    recorded = processes.on_first(lambda: digests(init.folder)) if isinstance(init, HuggingFace) else None

    def read() -> tuple[TrainState, Any]:
      params = read_params()
      self.check_folder(recorded)
      return self.from_params(params), params if self.is_referenced else None
    return Start(read, parent, recorded)

  def check_folder(self, recorded: dict[str, str] | None) -> None:
    """Refuses a Hugging Face folder whose digests are no longer those that were recorded at the stage's start."""
    if recorded is not None and isinstance(self.stage.init, HuggingFace):
      check_folder(self.stage.init.folder, recorded)

  @property
  def is_trained(self) -> bool:
    """Whether the stage starts from parameters that were trained before."""
    return not isinstance(self.stage.init, Scratch)

  @property
  def is_referenced(self) -> bool:
    """Whether the objective compares with the parameters that the stage starts from."""
    return isinstance(self.stage.objective, Referenced)

  def from_params(self, params: Any) -> TrainState:
    """A fresh state; a copy where the objective compares with `params`, for steps write to the state's memory."""
    def make(params: Any) -> TrainState:
      params = jax.tree.map(jnp.copy, params) if self.is_referenced else params
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
        read = lambda: checkpoint.read_best(self.held_by(checkpoint))
        parent = describe(checkpoint)
      case Average():
        checkpoints = [checkpoint for checkpoint, _ in self.averaged]
        weights = [weight for _, weight in self.averaged]
        read = lambda: average_params(checkpoints, self.held_by(*checkpoints), weights)
        parent = ' + '.join(describe(checkpoint, weight) for checkpoint, weight in self.averaged)
      case HuggingFace(folder):
        with located('config'):
          hf.check_pretrained(folder, self.session.run.model)
        read = lambda: self.pretrained(folder)
        parent = f'hf:{folder}'
    return lambda: self.with_head(read()), parent

  def pretrained(self, folder: str) -> Any:
    with located('config'):
      return hf.load_pretrained(folder, self.session.mesh, config=self.session.run.model)[1]

  def with_head(self, params: Any) -> Any:
    """A classifier's head is a fresh one, unless what the stage starts from was trained on the same classes."""
    if HEAD not in self.abstract.params or HEAD in params:
      return params
    shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract.params[HEAD])
    return {**params, HEAD: jax.jit(lambda: self.create().params[HEAD], out_shardings=shardings)()}

  @functools.cached_property
  def averaged(self) -> list[tuple[SavedCheckpoint, float]]:
    """The checkpoints whose mean the stage starts from with their weights, the last of them last; else none."""
    init = self.stage.init
    if not isinstance(init, Average):
      return []
    if isinstance(init.checkpoints, str):
      self.finished(init.checkpoints)
      newest = self.session.store(init.checkpoints).newest(init.last or 0)
      return [(self.without_other_head(checkpoint), 1.0) for checkpoint in reversed(newest)]
    return [(self.finished(named.stage, named.step), named.weight) for named in init.checkpoints]

  def last_alone(self) -> Iterator[tuple[str, Any]]:
    """Of the last checkpoint that is averaged: ('last_checkpoint', its parameters), and ('last_ema', their moving
    average) where one was kept. Nothing of a stage that starts from no average."""
    if not self.averaged:
      return
    checkpoint, _ = self.averaged[-1]
    abstract = self.held_by(checkpoint)
    if abstract.keys() == self.abstract.params.keys():  # else it lacks a classifier's head
      yield 'last_checkpoint', checkpoint.read(('params',), abstract)
      if checkpoint.averaged:
        yield 'last_ema', checkpoint.read(('ema',), abstract)

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
    return self.without_other_head(checkpoint)

  def without_other_head(self, checkpoint: SavedCheckpoint) -> SavedCheckpoint:
    """An earlier stage's checkpoint, in which a classifier's head of other classes than this stage's is not seen."""
    labels = next(stage.data.labels for stage in self.session.run.stages if stage.name == checkpoint.metadata.stage)
    if labels == self.stage.data.labels:
      return checkpoint
    leaves = {name: leaf for name, leaf in checkpoint.leaves.items() if f'/{HEAD}/' not in name}
    return dataclasses.replace(checkpoint, leaves=leaves)

  def held_by(self, *checkpoints: SavedCheckpoint) -> Any:
    """The abstract parameters of the stage, without the head where one of the checkpoints has none."""
    all_have = all(f'params/{HEAD}/w' in checkpoint.leaves for checkpoint in checkpoints)
    return {name: leaf for name, leaf in self.abstract.params.items() if name != HEAD or all_have}


def from_first_step(state: TrainState) -> TrainState:
  return state.replace(step=jnp.zeros_like(state.step), nonfinite=jnp.zeros_like(state.nonfinite))


def describe(checkpoint: SavedCheckpoint, weight: float = 1.0) -> str:
  """`stage/step` or `2 x stage/step`, as the lineage has it."""
  name = f'{checkpoint.metadata.stage}/{checkpoint.step}'
  return name if weight == 1 else f'{weight:g} x {name}'


def digests(folder: str) -> dict[str, str]:
  """sha256 of a Hugging Face folder's `config.json`, and of each weight file's size, header and 16 of its blocks: it
  takes no time, and other weights of the same shapes are told apart."""
  found = {}
  for file in (pathlib.Path(folder) / 'config.json', *sorted(pathlib.Path(folder).glob('*.safetensors'))):
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(file, 'rb') as content:
      if file.suffix == '.json':
        digest.update(content.read())
      else:
        digest.update(content.read(int.from_bytes(content.read(8), 'little')))
        for block in range(16):
          content.seek(max(0, size - 4_096) * block // 15)  # the first and the last among them
          digest.update(content.read(4_096))
    found[file.name] = digest.hexdigest()
  return found


def check_folder(folder: str, recorded: dict[str, str]) -> None:
  """Refuses a folder that holds something else than what the stage started from. A folder that is gone is not
  compared: where it is needed once more, reading it says so."""
  now = processes.on_first(lambda: digests(folder) if pathlib.Path(folder).is_dir() else recorded)
  changed = [name for name in sorted(now.keys() | recorded.keys()) if now.get(name) != recorded.get(name)]
  if changed:
    show = lambda found: ', '.join(f'{name} {found[name][:12] if name in found else "absent"}' for name in changed)
    raise CheckpointError(f'{folder} has changed since the stage began with it: then {show(recorded)}; now '
                          f'{show(now)}: bring the first one back, or start in another workdir')


def check_tokenizer(checkpoint: SavedCheckpoint, tokenizer: Tokenizer) -> None:
  if checkpoint.metadata.tokenizer != tokenizer.fingerprint:
    raise CheckpointError(f'{checkpoint.path} was trained with tokenizer {checkpoint.metadata.tokenizer}, this run '
                          f'has {tokenizer.fingerprint}: bring the first one back, or start in another workdir')
