"""Where a stage starts: `Stage.init` is one of the types in this file."""
import dataclasses
import math

from llm_jax.config.errors import require
from llm_jax.config.fields import Steps
from llm_jax.config.hub_names import HubName, is_hub_name

__all__ = ['Average', 'Checkpoint', 'HuggingFace', 'Init', 'Params', 'Resume', 'Scratch']


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """One saved checkpoint, to be averaged with others.

  stage: name of the stage that saves it.
  step: how many steps of that stage come before it; None: all.
  weight: its weight in the mean; they need not sum to 1.
  """
  stage: str
  step: Steps | None = None
  weight: float = 1.0

  def __post_init__(self):
    require(self.step is None or self.step > 0, 'step', self.step, 'use 1 or more, or None for the last')
    require(0 < self.weight < math.inf, 'weight', self.weight, 'use a finite weight above 0')

  @property
  def label(self) -> str:
    """For the recipe graph: `400`, `last`, `2 x 400`."""
    step = 'last' if self.step is None else str(self.step)
    return step if self.weight == 1 else f'{self.weight:g} x {step}'


class StageInit:
  """What all starts answer. A start that takes nothing from another stage keeps these answers."""

  @property
  def parents(self) -> tuple[str, ...]:
    """Names of the stages that this one starts from, each once."""
    return ()

  @property
  def origin(self) -> str:
    """For the recipe graph: what the stage starts from that is no stage of the run."""
    return ''

  def label(self, parent: str) -> str:
    """For the recipe graph: what is taken from the stage called `parent`."""
    raise KeyError(parent)

  def averages_newest(self, parent: str) -> bool:
    """Whether the newest checkpoints of the stage called `parent` are averaged."""
    return False

  def pinned_steps(self, parent: str) -> tuple[int, ...]:
    """Steps of the stage called `parent` whose checkpoints have to stay until this stage has read them."""
    return ()


@dataclasses.dataclass(frozen=True)
class Scratch(StageInit):
  """Fresh parameters, drawn from the run's seed."""


@dataclasses.dataclass(frozen=True)
class Resume(StageInit):
  """The parameters, the optimizer's state and the moving average of an earlier stage.

  stage: name of the earlier stage.
  """
  stage: str

  @property
  def parents(self) -> tuple[str, ...]:
    return (self.stage,)

  def label(self, parent: str) -> str:
    return 'resume'


@dataclasses.dataclass(frozen=True)
class Params(StageInit):
  """The parameters of an earlier stage, or their moving average where it kept one; the optimizer starts afresh.

  stage: name of the earlier stage.
  """
  stage: str

  @property
  def parents(self) -> tuple[str, ...]:
    return (self.stage,)

  def label(self, parent: str) -> str:
    return 'params'


@dataclasses.dataclass(frozen=True)
class Average(StageInit):
  """The weighted mean of the parameters in several checkpoints; the optimizer starts afresh.

  `Average('anneal', last=3)` takes the last three of one stage (Izmailov et al. 2018; Dubey et al. 2024, Llama 3,
  section 3.4.3), `Average((Checkpoint('a', 400), Checkpoint('b', weight=2.0)))` those that it names, of any stages.

  checkpoints: name of an earlier stage, or the checkpoints one by one.
  last: number of checkpoints of the named stage; None where they are named one by one.
  """
  checkpoints: str | tuple[Checkpoint, ...]
  last: int | None = None

  def __post_init__(self):
    if isinstance(self.checkpoints, str):
      require(self.last is not None and self.last > 0, 'last', self.last,
              f'say how many checkpoints of {self.checkpoints!r} are averaged: use 1 or more')
    else:
      require(len(self.checkpoints) > 0, 'checkpoints', self.checkpoints, 'name 1 checkpoint or more')
      require(self.last is None, 'last', self.last, 'checkpoints are named one by one: leave it out')

  @property
  def named(self) -> tuple[Checkpoint, ...]:
    """The checkpoints that are named one by one."""
    return () if isinstance(self.checkpoints, str) else self.checkpoints

  @property
  def parents(self) -> tuple[str, ...]:
    if isinstance(self.checkpoints, str):
      return (self.checkpoints,)
    return tuple(dict.fromkeys(checkpoint.stage for checkpoint in self.checkpoints))

  def label(self, parent: str) -> str:
    if isinstance(self.checkpoints, str):
      return f'average {self.last}'
    return 'average ' + ', '.join(checkpoint.label for checkpoint in self.checkpoints if checkpoint.stage == parent)

  def averages_newest(self, parent: str) -> bool:
    return self.checkpoints == parent

  def pinned_steps(self, parent: str) -> tuple[int, ...]:
    return tuple(each.step for each in self.named if each.stage == parent and each.step is not None)


@dataclasses.dataclass(frozen=True)
class HuggingFace(StageInit):
  """The weights in a Hugging Face folder, which holds the run's model; the optimizer starts afresh.

  folder: path of the folder with `config.json` and `*.safetensors`, or the name of a model on the hub.
  resize_vocabulary: whether embedding and head get `model.vocab_size` rows, the new ones the mean of the old.
  revision: branch, tag or commit on the hub; None: the newest commit when the run begins, which it keeps.
  """
  folder: str
  resize_vocabulary: bool = False
  revision: str | None = None

  @property
  def hub_name(self) -> HubName | None:
    return HubName('model', self.folder, self.revision) if is_hub_name(self.folder) else None

  @property
  def origin(self) -> str:
    return 'Hugging Face'


Init = Scratch | Resume | Params | Average | HuggingFace
