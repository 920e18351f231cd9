"""What an evaluation is: computed from parameters, at the start, every n steps or at the end of a stage."""
import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax

from llm_jax.config.evaluation import EvaluationConfig
from llm_jax.config.model.architecture import Architecture
from llm_jax.config.ramp import Phase
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.data.dataset import Dataset
from llm_jax.data.stage_data import StageData
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.modules.execution import Execution
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.protocol import Objective
from llm_jax.tracking.display import Block

Metrics = Mapping[str, float | list[float]]


class Moment(enum.Enum):
  """When a stage is evaluated. START: the parameters that it starts from, where these were trained."""
  START = 'start'
  STEP = 'step'
  END = 'end'


@dataclasses.dataclass(frozen=True)
class EvaluationSetup:
  """What the evaluations of one stage may use.

  data: of this stage and of those that it comes from, by name.
  objective: of the stage, over batches of its validation split.
  phase: the last of the stage's, whose microbatches fit into memory.
  saved_steps: (stage name) -> the steps of its checkpoints, the highest first.
  """
  run: Run
  stage: Stage
  model: Architecture
  execution: Execution
  mesh: jax.sharding.Mesh
  tokenizer: Tokenizer
  data: Mapping[str, StageData]
  objective: Objective
  phase: Phase
  saved_steps: Callable[[str], list[int]]
  primary: bool

  @property
  def has_validation(self) -> bool:
    """Whether any of the stage's data is set aside."""
    return self.data[self.stage.name].validation is not None

  @property
  def validation(self) -> Dataset:
    """The split that scores the stage; ask `has_validation` first."""
    dataset = self.data[self.stage.name].validation
    if dataset is None:
      raise ValueError(f'stage {self.stage.name} has no validation split')
    return dataset

  @property
  def parent(self) -> Stage | None:
    """The first stage that this one comes from; None where it comes from none."""
    return next((stage for stage in self.run.stages if stage.name in self.stage.parents), None)


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """The model to evaluate.

  params: averaged (EMA) where the stage keeps an average.
  frozen: what the objective reads and the stage never changes, such as the parameters that it compares with.
  step: finished steps of the stage.
  unaveraged: of a stage that starts from a mean of checkpoints, at its end, (name, parameters) of the last of them
    alone; else nothing.
  num_averaged: how many checkpoints that mean is of; 0 where the stage starts from none.
  heartbeat: tells the watchdog that the process still works; call it before every batch.
  """
  params: Any
  frozen: Frozen
  moment: Moment
  step: int
  unaveraged: Callable[[], Iterator[tuple[str, Any]]] = lambda: iter(())
  num_averaged: int = 0
  heartbeat: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Result:
  """What one evaluation found.

  metrics: written to metrics.jsonl, and to the trackers where they are numbers.
  lines: printed in the terminal.
  status: shown in the progress display until the next one.
  headline: a few words for the stage's box in the report's recipe; None where there is nothing to say.
  display: blocks that the report draws.
  generations: (prompt, text), written to generations.jsonl.
  """
  metrics: Metrics = dataclasses.field(default_factory=dict)
  lines: tuple[str, ...] = ()
  status: str | None = None
  headline: str | None = None
  display: tuple[Block, ...] = ()
  generations: tuple[tuple[str, str], ...] = ()


class Evaluation(Protocol):
  """One evaluation of a stage. Every process makes the same calls and gets the same results."""
  at_start = False
  at_end = True
  config: EvaluationConfig
  setup: EvaluationSetup

  def __init__(self, config: Any, setup: EvaluationSetup):
    self.config = config
    self.setup = setup

  @property
  def every(self) -> int:
    """Steps between evaluations during training; 0: none."""
    return 0

  def applies(self) -> bool:
    """Whether the stage's data holds anything that it can evaluate."""
    return True

  def check(self) -> None:
    """Raises ConfigError for data that it cannot use; called for all stages before anything compiles."""

  def run(self, model: Evaluated, start: Metrics) -> Result:
    """Evaluates. start: its own metrics at the stage's start, or {} where there are none."""
    ...

  def ends_stage(self, start: Metrics, now: Metrics) -> bool:
    """Whether the stage has reached what it was to reach. now: its metrics at this step."""
    return False
