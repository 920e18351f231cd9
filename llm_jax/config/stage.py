"""What a stage of a run is."""
import dataclasses
import functools
import itertools
from typing import Annotated

from llm_jax.config.adapters import Adapters
from llm_jax.config.answer_checks import check_pretraining_loss, check_rollout, check_samples, check_teacher_ids
from llm_jax.config.data import Data
from llm_jax.config.errors import located, require
from llm_jax.config.evaluations import Answers, Baselines, Evaluation, HeldOut
from llm_jax.config.fields import Change, InBranch, Safe, SafeToChange, Sequences, Steps, Tokens
from llm_jax.config.model.positions import RoPE
from llm_jax.config.objectives import PPO, LanguageModel, Objective, PolicyGradient
from llm_jax.config.optimizers import AdamW, Optimizer
from llm_jax.config.quantization import QuantizationAware
from llm_jax.config.ramp import MICROBATCHES_MAY_CHANGE, Phase, Ramp, make_phases
from llm_jax.config.revisions import Revisions
from llm_jax.config.rollout import PretrainingLoss, Rollout
from llm_jax.config.rows import names_with
from llm_jax.config.samples import SampledSource, Samples
from llm_jax.config.schedules import Schedule
from llm_jax.config.sources import Source
from llm_jax.config.spikes import SkipSpikes
from llm_jax.config.stage_init import Average, HuggingFace, Init, Params, Resume, Scratch

__all__ = ['Stage']

REMAT = ('none', 'block', 'dots', 'offload')
LONGEST_NAME = 128  # bytes; most file systems allow 255, encrypted ones 143


def _may_end_otherwise(change: Change) -> bool:
  """Whether evaluations that may end the stage before its last step are changed."""
  old = [evaluation for evaluation in change.old if evaluation.may_end_stage]
  new = [evaluation for evaluation in change.new if evaluation.may_end_stage]
  return old != new


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stretch of training with one objective and one data mixture. Its boundary is a checkpoint.

  Steps count from 0 in every stage, and schedules are functions of them.

  name: a plain word; no two stages have the same.
  data: what it learns from.
  steps: how many optimizer steps it takes.
  seq_len: length of a sequence.
  batch_size: sequences of a step over all devices.
  learning_rate: its schedule over the stage's steps.
  optimizer: how gradients become updates.
  objective: what is learnt.
  init: where it starts. Its types are in `stage_init.py`.
  positions: rotary positions from this stage on, or None. They replace the model's (a longer sequence length: another
    theta or scaling); None keeps those of the stage that it starts from.
  ramp: other batch sizes and sequence lengths later in the stage.
  eval_data: data whose validation split scores the stage; None: its own. Stages with other data are compared by it.
  microbatches: pieces that a step's batch is computed in, one after the other.
  clip_norm: the gradient's norm is cut to it; None leaves it.
  skip_spikes: when a step whose loss or gradient norm jumps far above the recent ones is skipped; None: never.
  max_nonfinite: the run halts after so many steps in a row that are skipped. Their gradient is not finite, or they are
    spikes; each of them changes nothing.
  ema: decay of an exponential moving average of the parameters, kept beside them; None keeps none.
  remat: what is computed again in the backward pass: 'none', 'block', 'dots' or 'offload'. 'none' keeps activations,
    'block' recomputes each block, 'dots' keeps results of matrix products, 'offload' keeps them in the host's memory.
  adapters: low-rank matrices that alone are trained, beside frozen weights. None: all parameters are trained.
  quantization: trains weights for being stored in fewer bits; evaluations are of the model as stored. None: does not.
  parameters: how the parameters are stored: 'float32' or 'bfloat16'. In bfloat16 updates are computed in float32 and
    rounded stochastically; norms, biases, routers and a moving average stay float32.
  optimizer_memory: where the optimizer's state is kept between steps: 'device' or 'host'.
  rollout: how answers to the prompts are sampled and scored; None where the data is what is learnt.
  pretraining_loss: text that is learnt beside the answers of a rollout; None: none.
  evals: how it is evaluated, in this order. Their names differ; each says itself when.
  """
  name: str
  data: Data
  steps: Steps
  seq_len: Tokens
  batch_size: Sequences
  learning_rate: InBranch[Schedule]
  optimizer: InBranch[Optimizer] = AdamW()
  objective: Objective = LanguageModel()
  init: Init = Scratch()
  positions: RoPE | None = None
  ramp: tuple[Ramp, ...] = ()
  eval_data: Data | None = None
  microbatches: Annotated[int, MICROBATCHES_MAY_CHANGE] = 1
  clip_norm: InBranch[float | None] = 1.0
  skip_spikes: InBranch[SkipSpikes | None] = SkipSpikes()
  max_nonfinite: Safe[Steps] = 10
  ema: float | None = None
  remat: Safe[str] = 'none'
  adapters: Adapters | None = None
  quantization: QuantizationAware | None = None
  parameters: str = 'float32'
  optimizer_memory: Safe[str] = 'device'
  rollout: Rollout | None = None
  pretraining_loss: PretrainingLoss | None = None
  evals: Annotated[tuple[Evaluation, ...], SafeToChange(_may_end_otherwise, 'an evaluation may end the stage')] = (
    HeldOut(), Answers(), Baselines())

  def __post_init__(self):
    self._check_name()
    self._check_sizes()
    self._check_ramp()
    self._check_rows()
    check_rollout(self)
    check_pretraining_loss(self)
    check_samples(self)
    check_teacher_ids(self)
    self._check_evals()
    warmup = getattr(self.learning_rate, 'warmup', 0)
    require(warmup <= self.steps, 'learning_rate.warmup', warmup,
            f'warm-up is longer than the stage: use at most steps={self.steps}')

  def _check_name(self) -> None:
    is_plain = self.name.isprintable() and '/' not in self.name and not self.name.startswith('.')
    require(is_plain and bool(self.name), 'name', self.name, 'use a plain word')
    num_bytes = len(self.name.encode(errors='replace'))
    require(num_bytes <= LONGEST_NAME, 'name', self.name,
            f'has {num_bytes} bytes, and a folder is called like it: use at most {LONGEST_NAME}')

  def _check_sizes(self) -> None:
    least = {'steps': 0, 'seq_len': 1, 'batch_size': 1, 'microbatches': 1, 'max_nonfinite': 1}
    for field, minimum in least.items():
      require(getattr(self, field) >= minimum, field, getattr(self, field), f'use {minimum} or more')
    require(self.batch_size % self.microbatches == 0, 'microbatches', self.microbatches,
            f'use a divisor of batch_size={self.batch_size}')
    require(self.clip_norm is None or self.clip_norm > 0, 'clip_norm', self.clip_norm, 'use a number above 0, or None')
    require(self.ema is None or 0 < self.ema < 1, 'ema', self.ema, 'use a decay rate in (0, 1), or None')
    require(self.remat in REMAT, 'remat', self.remat, f'use one of {", ".join(REMAT)}')
    self._check_storage()

  def _check_storage(self) -> None:
    """How parameters and optimizer state are kept."""
    require(self.parameters in ('float32', 'bfloat16'), 'parameters', self.parameters, "use 'float32' or 'bfloat16'")
    require(self.adapters is None or self.parameters == 'float32', 'parameters', self.parameters,
            "adapters are trained in float32: use 'float32'; adapters.base says how the weights beside them are stored")
    require(self.optimizer_memory in ('device', 'host'), 'optimizer_memory', self.optimizer_memory,
            "use 'device' or 'host'")

  def _check_ramp(self) -> None:
    tokens = [ramp.tokens for ramp in self.ramp]
    is_rising = all(earlier < later for earlier, later in itertools.pairwise([0, *tokens]))
    require(is_rising, 'ramp', tokens, 'let the tokens at which it changes rise')
    most = self.tokens_after(max(self.steps - 1, 0))
    for i, (ramp, phase) in enumerate(zip(self.ramp, self.phases[1:], strict=True)):
      require(phase.first_step < self.steps, f'ramp[{i}].tokens', ramp.tokens,
              f'the stage ends before it, with its {self.steps} steps: use at most {most}, or more steps')

  def _check_rows(self) -> None:
    """Whether the objective can learn from the data, and be scored on that set aside."""
    rows = self.data.rows
    objective = self.objective
    require(rows in (objective.rows, *objective.other_rows), 'objective', type(objective).__name__,
            f'learns from {objective.rows.name}, and data has {rows.name}: use {names_with(Objective, rows)}, or data '
            f'of {names_with(Source, objective.rows)}')
    require(objective.reads_margins or not self.data.has_margins, 'data', type(objective).__name__,
            'does not read how much better an answer is: leave `margin` out of the source')
    require(objective.reads_soft_labels or not self.data.has_soft_labels, 'data', type(objective).__name__,
            'takes every chosen answer for the better one: use RewardModel or DPO, or leave `soft_label` out')
    is_alike = self.validation_data.rows == rows and self.validation_data.labels == self.data.labels
    require(is_alike, 'eval_data', self.eval_data,
            f'must be of one kind with data, {rows.name}' + (' of the same classes' if self.data.labels else ''))
    has_start = isinstance(self.init, Params | Average | HuggingFace)
    require(has_start or not objective.has_reference, 'init', self.init,
            'the reference is what the stage starts from: use Params(stage), Average or HuggingFace(folder)')
    require(has_start or isinstance(self.init, Resume) or self.adapters is None, 'adapters', self.adapters,
            'they are trained beside what the stage starts from: use init=Params(stage), Average or '
            'HuggingFace(folder)')
    require(self.quantization is None or self.adapters is None, 'quantization', self.quantization,
            "adapters are trained beside a base that is quantised already: use LoRA(base='int8') or 'nf4' alone")
    has_one_length = all(ramp.seq_len == self.seq_len for ramp in self.ramp)
    require(has_one_length or rows.is_packed, 'ramp', self.ramp,
            f'{rows.name} are read whole: let its seq_len be {self.seq_len} throughout')

  def _check_evals(self) -> None:
    names: list[str] = []
    for i, evaluation in enumerate(self.evals):
      require(evaluation.name not in names, f'evals[{i}]', evaluation,
              f'another one is called {evaluation.name} too: leave one out, or give it another name')
      names.append(evaluation.name)
      with located(f'evals[{i}]'):
        evaluation.check(self)

  @property
  def trained_models(self) -> int:
    """How many models of its size it trains: a critic of its own is another."""
    return 2 if isinstance(self.objective, PPO) and self.objective.critic == 'apart' else 1

  @property
  def training_passes(self) -> float:
    """Passes forward and backward that a token of a step takes, of which one forward alone is a third."""
    passes = self.trained_models + self.objective.reference_passes / 3
    if self.rollout is None:
      return passes
    once = 1  # sampling
    if isinstance(self.objective, PolicyGradient | PPO):  # log-probabilities, those of a reference, and values
      once += 1 + self.objective.has_reference + isinstance(self.objective, PPO)
    return passes + once / 3 / self.rollout.replays

  @property
  def parents(self) -> tuple[str, ...]:
    """The stages that this one starts from."""
    return self.init.parents

  @functools.cached_property
  def phases(self) -> tuple[Phase, ...]:
    """The shapes of the stage's steps, one after the other."""
    return self.phases_over(1)

  def phases_over(self, copies: int) -> tuple[Phase, ...]:
    """The same, with microbatches whose rows divide over so many devices wherever the ramp leaves that open."""
    sequences = self.data.sequences if self.rollout is None else self.objective.rows.sequences
    return make_phases(self.batch_size, self.seq_len, self.microbatches, self.ramp, copies, sequences)

  @property
  def samples(self) -> tuple[Samples | Revisions, ...]:
    """The answers of earlier stages that it learns from, or is scored on, each once."""
    datas = [self.data] if self.eval_data is None else [self.data, self.eval_data]
    sources = [part.source for data in datas for part in data.sources]
    return tuple(dict.fromkeys(source.samples for source in sources if isinstance(source, SampledSource)))

  @property
  def answering(self) -> Rollout | Samples | None:
    """How answers to prompts are sampled and scored, where it learns from such; else None."""
    return self.rollout or next((each for each in self.samples if isinstance(each, Samples)), None)

  @property
  def validation_data(self) -> Data:
    """The data whose held-out part scores the stage."""
    return self.data if self.eval_data is None else self.eval_data

  def phase_at(self, step: int) -> Phase:
    """The phase of the step after `step` steps."""
    return next(phase for phase in reversed(self.phases) if phase.first_step <= step)

  def samples_after(self, step: int) -> int:
    """Samples given out in the first `step` steps."""
    phase = self.phase_at(max(step - 1, 0))
    return phase.first_sample + (step - phase.first_step) * phase.batch_size

  def tokens_after(self, step: int) -> int:
    """Tokens read in the first `step` steps, padding included."""
    phase = self.phase_at(max(step - 1, 0))
    return phase.first_token + (step - phase.first_step) * phase.tokens
