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
from llm_jax.checkpoints.store import SavedCheckpoint
from llm_jax.config.errors import located
from llm_jax.config.objectives import Referenced
from llm_jax.config.stage import Stage
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.objectives.classification import HEAD
from llm_jax.runtime import processes
from llm_jax.runtime.errors import CheckpointError
from llm_jax.train.session import Session
from llm_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Start:
  """read: () -> (the state to train, the parameters that the objective compares with in memory of their own or None).

  parent: the checkpoints or the folder that the stage began with, for its lineage; None: nothing.
  folder: digests of a Hugging Face folder that the stage began with, for its lineage too; None: it began elsewhere.
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
    self.session, self.stage, self.create, self.abstract, self.optimizer = session, stage, create, abstract, optimizer

  def start(self, newest: SavedCheckpoint | None) -> Start:
    """From the stage's own newest checkpoint where there is one, else from its `init`."""
    if newest:
      check_tokenizer(newest, self.session.tokenizer)
      lineage = newest.metadata['lineage']
      folder = lineage.get('folder')
      if folder is not None:
        check_folder(self.stage.init[1], folder)
      newest.check(self.abstract)
      params = self.inherited()[0] if self.referenced else lambda: None

      def read():
        reference = params()
        if folder is not None:
          check_folder(self.stage.init[1], folder)  # once more: it may have changed while the step was compiled
        return newest.restore(self.abstract), reference
      return Start(read, lineage['parent'], folder, newest)
    match self.stage.init:
      case ('scratch',):
        return Start(lambda: (self.create(), None))
      case ('resume', name):
        checkpoint = self.finished(name)
        checkpoint.check(self.abstract)
        return Start(lambda: (from_first_step(checkpoint.restore(self.abstract)), None), named(checkpoint))
    params, parent = self.inherited()
    folder = processes.on_first(lambda: digests(self.stage.init[1])) if self.stage.init[0] == 'hf' else None

    def read():
      found = params()
      if folder is not None:
        check_folder(self.stage.init[1], folder)
      return self.from_params(found), found if self.referenced else None
    return Start(read, parent, folder)

  @property
  def is_trained(self) -> bool:
    """Whether the stage starts from parameters that were trained before."""
    return self.stage.init[0] != 'scratch'

  @property
  def referenced(self) -> bool:
    """Whether the objective compares with the parameters that the stage begins with."""
    return isinstance(self.stage.objective, Referenced)

  def from_params(self, params: Any) -> TrainState:
    """A fresh state; a copy where the objective compares with `params`, for steps write to the state's memory."""
    def make(params):
      params = jax.tree.map(jnp.copy, params) if self.referenced else params
      return TrainState.create(params, self.optimizer, self.stage.ema is not None)
    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, self.abstract))(params)

  def inherited(self) -> tuple[Callable[[], Any], str]:
    """What reads the parameters that the stage begins with, and where they are from."""
    match self.stage.init:
      case ('params' | 'resume', name):
        checkpoint = self.finished(name)
        read, parent = lambda: checkpoint.read_best(self.held_by(checkpoint)), named(checkpoint)
      case ('average', *_):
        checkpoints, weights = zip(*self.members, strict=True)
        read = lambda: average_params(checkpoints, self.held_by(*checkpoints), weights)
        parent = ' + '.join(named(checkpoint) if weight == 1 else f'{weight:g} x {named(checkpoint)}'
                            for checkpoint, weight in self.members)
      case ('hf', folder):
        with located('config'):
          hf.check_pretrained(folder, self.session.run.model)
        read, parent = lambda: self.pretrained(folder), f'hf:{folder}'
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
  def members(self) -> list[tuple[SavedCheckpoint, float]]:
    """The checkpoints whose mean the stage begins with, and their weights, the last of them last; none else."""
    match self.stage.init:
      case ('average', str() as name, count):
        self.finished(name)
        newest = reversed(self.session.store(name).newest(count))
        return [(self.without_other_head(checkpoint), 1.0) for checkpoint in newest]
      case ('average', *members):
        return [(self.finished(member.stage, member.step), member.weight) for member in members]
    return []

  def last_alone(self) -> Iterator[tuple[str, Any]]:
    """Of the last checkpoint that is averaged: ('last_checkpoint', its parameters), and ('last_ema', their moving
    average) where one was kept. Nothing of a stage that starts from no average."""
    if not self.members:
      return
    checkpoint, _ = self.members[-1]
    abstract = self.held_by(checkpoint)
    if abstract.keys() == self.abstract.params.keys():  # else it lacks a classifier's head
      yield 'last_checkpoint', checkpoint.read(('params',), abstract)
      if checkpoint.averaged:
        yield 'last_ema', checkpoint.read(('ema',), abstract)

  def finished(self, name: str, step: int | None = None) -> SavedCheckpoint:
    """The last checkpoint of an earlier stage, or that of `step`."""
    store = self.session.store(name)
    checkpoint = store.latest_valid()
    if checkpoint is None or not checkpoint.metadata['final']:
      raise CheckpointError(f'stage {self.stage.name} starts from stage {name}, which has not finished or has lost its '
                            'checkpoints: run it first, or bring them back')
    if step not in (None, checkpoint.step):
      checkpoint = store.at(step)
    check_tokenizer(checkpoint, self.session.tokenizer)
    return self.without_other_head(checkpoint)

  def without_other_head(self, checkpoint: SavedCheckpoint) -> SavedCheckpoint:
    """An earlier stage's checkpoint, in which a classifier's head of other classes than this stage's is not seen."""
    labels = next(stage.data.labels for stage in self.session.run.stages if stage.name == checkpoint.metadata['stage'])
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


def named(checkpoint: SavedCheckpoint) -> str:
  """`stage/step`, as lineage has it."""
  return f'{checkpoint.metadata["stage"]}/{checkpoint.step}'


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
  """Refuses a folder that holds something else than what the stage began with. One that is gone is not asked for."""
  now = processes.on_first(lambda: digests(folder) if pathlib.Path(folder).is_dir() else recorded)
  changed = [name for name in sorted(now.keys() | recorded.keys()) if now.get(name) != recorded.get(name)]
  if changed:
    told = lambda found: ', '.join(f'{name} {found[name][:12] if name in found else "absent"}' for name in changed)
    raise CheckpointError(f'{folder} has changed since the stage began with it: then {told(recorded)}; now '
                          f'{told(now)}: bring the first one back, or start in another workdir')


def check_tokenizer(checkpoint: SavedCheckpoint, tokenizer: Tokenizer) -> None:
  if checkpoint.metadata['tokenizer'] != tokenizer.fingerprint:
    raise CheckpointError(f'{checkpoint.path} was trained with tokenizer {checkpoint.metadata["tokenizer"]}, this run '
                          f'has {tokenizer.fingerprint}: bring the first one back, or start in another workdir')
