"""What a run is: a model, a tokenizer, a mesh and a tuple of stages. Frozen, checked when made, free of jax.

Its parts are in the other files of this folder, `stage.py` first; `experiment.py` exports them all.
"""
import dataclasses
from typing import Annotated

from llm_jax.config.errors import require
from llm_jax.config.fields import Change, Devices, Safe, SafeToChange, Seconds, Steps
from llm_jax.config.model.architecture import Architecture
from llm_jax.config.recipe_checks import check_stages
from llm_jax.config.stage import Stage
from llm_jax.config.stage_init import Average
from llm_jax.config.tokenizers import BPE, Bytes, Tokenizer
from llm_jax.config.trackers import TensorBoard, Tracker

__all__ = ['Checkpoints', 'Mesh', 'Run']


def pieces_of(stages: int, wanted: int | None) -> int:
  """That go through the stages of a pipeline: those that are wanted, or twice as many as stages; 1 without one."""
  if stages == 1:
    return 1
  return 2 * stages if wanted is None else wanted


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices along each axis; one of them may be -1: all that are left.

  data: devices with other rows of the batch and the same parameters.
  fsdp: devices with other rows, among which parameters and optimizer state are split.
  tensor: devices among which every matrix product is split.
  context: devices among which every sequence is split.
  expert: devices among which the experts are split.
  pipeline: devices among which the layers are split, as stages of a pipeline.
  pipeline_microbatches: pieces that go through the stages one after the other; None: twice as many as stages.
  """
  data: Devices = -1
  fsdp: Devices = 1
  tensor: Devices = 1
  context: Devices = 1
  expert: Devices = 1
  pipeline: Devices = 1
  pipeline_microbatches: int | None = None

  @property
  def sizes(self) -> dict[str, int]:
    """Devices along each axis, those first whose links may be the slowest."""
    sizes = dataclasses.asdict(self)
    del sizes['pipeline_microbatches']
    return {'pipeline': self.pipeline, **sizes}

  @property
  def pieces(self) -> int:
    """That go through the stages of the pipeline; 1 without one."""
    return pieces_of(self.pipeline, self.pipeline_microbatches)

  def __post_init__(self):
    sizes = self.sizes
    for axis, size in sizes.items():
      require(size >= 1 or size == -1, axis, size, 'use a positive number of devices, or -1 for all that are left')
    left = [axis for axis, size in sizes.items() if size == -1]
    require(len(left) <= 1, left[-1] if left else '', -1, f'only one axis may be -1, found {left}')
    require(self.pipeline != -1, 'pipeline', -1, 'use a number of stages, and -1 for another axis')
    require(self.pieces % self.pipeline == 0 and self.pieces > 0, 'pipeline_microbatches', self.pipeline_microbatches,
            f'use a multiple of pipeline={self.pipeline}')


def _chooses_averaged(change: Change) -> bool:
  """Whether it decides which checkpoints a later stage averages."""
  return any(isinstance(stage.init, Average) for stage in change.run.stages)


@dataclasses.dataclass(frozen=True)
class Checkpoints:
  """When the state is saved, and what is kept.

  every: steps between checkpoints, beside those at a stage's end and on SIGTERM (0: only those).
  keep: how many of the newest stay.
  """
  every: Annotated[Steps, SafeToChange(_chooses_averaged, 'a stage averages checkpoints')] = 1_000
  keep: Safe[int] = 2

  def __post_init__(self):
    require(self.every >= 0, 'every', self.every, 'use 0 or more')
    require(self.keep >= 1, 'keep', self.keep, 'use 1 or more')


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything that an experiment states.

  model: the decoder that all stages train.
  stages: stages in the order in which they run; each may start from those before it.
  tokenizer: how text becomes tokens.
  mesh: how the devices share the work.
  checkpoints: when the state is saved.
  seed: decides parameters, order of the data and dropout.
  dtype: of the computation: 'float32', 'bfloat16', or 'auto' (bfloat16 where the chip has units for it, else float32).
  context_attention: how attention reads a split sequence, 'gather' or 'ring'. Where mesh.context splits the sequences,
    'gather' brings all keys and values to every device, and 'ring' passes them round, for sequences so long that they
    do not fit.
  stall_seconds: a process that finishes no step for so long (outside of steps: 10 times) ends with exit code 70.
  leak_test: whether each stage first tests that documents in one row do not read one another; None: on GPU and TPU.
  log_every: steps between training records in metrics.jsonl and in the trackers.
  trackers: where the records go beside metrics.jsonl: TensorBoard, Weights & Biases, Trackio.
  """
  model: Architecture
  stages: tuple[Stage, ...]
  tokenizer: Tokenizer = Bytes()
  mesh: Safe[Mesh] = Mesh()
  checkpoints: Checkpoints = Checkpoints()
  seed: int = 0
  dtype: str = 'auto'
  context_attention: Safe[str] = 'gather'
  stall_seconds: Safe[Seconds] = 1_800.0
  leak_test: Safe[bool | None] = None
  log_every: Safe[Steps] = 1
  trackers: Safe[tuple[Tracker, ...]] = (TensorBoard(),)

  def __post_init__(self):
    require(-2**63 <= self.seed < 2**63, 'seed', self.seed, 'use a number of 64 bits')
    require(self.dtype in ('auto', 'float32', 'bfloat16'), 'dtype', self.dtype, "use 'auto', 'float32' or 'bfloat16'")
    require(self.context_attention in ('gather', 'ring'), 'context_attention', self.context_attention,
            "use 'gather' or 'ring'")
    require(self.stall_seconds > 0, 'stall_seconds', self.stall_seconds, 'use a number of seconds above 0')
    require(len(self.stages) > 0, 'stages', self.stages, 'give at least one stage')
    require(self.log_every >= 1, 'log_every', self.log_every, 'use 1 or more')
    kinds = [type(tracker).__name__ for tracker in self.trackers]
    require(len(set(kinds)) == len(kinds), 'trackers', kinds, 'name each kind once')
    check_stages(self)
    known_size = self.tokenizer.vocab_size if isinstance(self.tokenizer, BPE | Bytes) else 0  # the others are files
    require(self.model.vocab_size >= known_size, 'model.vocab_size', self.model.vocab_size,
            f'smaller than the tokenizer\'s: use {known_size} or more')

  def ancestors(self, stage: Stage) -> tuple[Stage, ...]:
    """The stages that `stage` comes from, in the order of the run."""
    names = set(stage.parents)
    for each in reversed(self.stages):
      if each.name in names:
        names.update(each.parents)
    return tuple(each for each in self.stages if each.name in names)

  def model_of(self, stage: Stage) -> Architecture:
    """The model as `stage` trains it: with the positions that it, or else the last stage that it comes from, sets."""
    if stage.positions is not None:
      return dataclasses.replace(self.model, positions=stage.positions)
    parent = next((each for each in self.stages if each.name in stage.parents), None)
    return self.model if parent is None else self.model_of(parent)
