"""What a run is: a model, a tokenizer, a mesh and a tuple of stages. Frozen, checked when made, free of jax."""
import dataclasses
import math

from llm_jax.config.architecture import Architecture
from llm_jax.config.errors import ConfigError, require


# ---------------------------------------------------------------------------------------------- schedules
# Each is a pure function of the step inside its stage; `llm_jax/optim/schedules.py` evaluates them.
@dataclasses.dataclass(frozen=True)
class Constant:
  """Linear warm-up over `warmup` steps to `peak`, then constant."""
  peak: float
  warmup: int = 0

  def __post_init__(self):
    check_schedule(self)


@dataclasses.dataclass(frozen=True)
class Cosine:
  """Warm-up, then half a cosine down to `final` x peak at the stage's end (GPT-3, appendix B; Llama)."""
  peak: float
  warmup: int = 0
  final: float = 0.1

  def __post_init__(self):
    check_schedule(self)


@dataclasses.dataclass(frozen=True)
class WSD:
  """Warm-up, stable, decay: constant, then linear to `final` x peak over the last `decay` of the stage
  (Hu et al. 2024, MiniCPM, section 4)."""
  peak: float
  warmup: int = 0
  decay: float = 0.2
  final: float = 0.0

  def __post_init__(self):
    check_schedule(self)
    require(0 <= self.decay <= 1, 'decay', self.decay, 'use the fraction of steps that decay, in [0, 1]')


@dataclasses.dataclass(frozen=True)
class LinearToZero:
  """Warm-up, then linear to zero at the stage's end (Llama 3's annealing, section 3.4.3)."""
  peak: float
  warmup: int = 0

  def __post_init__(self):
    check_schedule(self)


Schedule = Constant | Cosine | WSD | LinearToZero


def check_schedule(schedule: Schedule) -> None:
  require(math.isfinite(schedule.peak) and schedule.peak >= 0, 'peak', schedule.peak,
          'use a finite learning rate of 0 or more, such as 3e-4')
  require(schedule.warmup >= 0, 'warmup', schedule.warmup, 'use a number of steps of 0 or more')
  final = getattr(schedule, 'final', 0.0)
  require(0 <= final <= 1, 'final', final, 'use a fraction of the peak in [0, 1]')


# ---------------------------------------------------------------------------------------------- optimizers
@dataclasses.dataclass(frozen=True)
class AdamW:
  """Loshchilov & Hutter 2019; matrices decay, norms, biases and 1-d parameters do not (GPT-3, appendix B)."""
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1

  def __post_init__(self):
    check_betas(self, 'b1', 'b2')


@dataclasses.dataclass(frozen=True)
class Muon:
  """Jordan et al. 2024 through `optax.contrib.muon`: matrices orthogonalised, the rest by AdamW.

  The stage's learning rate is AdamW's; matrices use `matrix_scale` times as much.
  """
  matrix_scale: float = 1.0
  beta: float = 0.95
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1

  def __post_init__(self):
    check_betas(self, 'beta', 'b1', 'b2')


Optimizer = AdamW | Muon


def check_betas(optimizer: Optimizer, *names: str) -> None:
  for name in names:
    require(0 <= getattr(optimizer, name) < 1, name, getattr(optimizer, name), 'use a decay rate in [0, 1)')
  for name in ('eps', 'weight_decay'):
    value = getattr(optimizer, name)
    require(math.isfinite(value) and value >= 0, name, value, 'use a finite number of 0 or more')


# ---------------------------------------------------------------------------------------------- tokenizers
@dataclasses.dataclass(frozen=True)
class Bytes:
  """256 bytes and one control token, `<|endoftext|>` = 256: a vocabulary of 257."""


@dataclasses.dataclass(frozen=True)
class BPE:
  """Byte-level BPE trained on the first stage's training text, then kept in the workdir.

  vocab_size counts the 256 bytes, the merges and the control token.
  pattern: 'gpt2', 'cl100k' or 'llama3', or a regular expression.
  """
  vocab_size: int = 4_096
  pattern: str = 'cl100k'
  split_digits: bool = False
  sample_bytes: int = 20_000_000

  def __post_init__(self):
    require(self.vocab_size >= 258, 'vocab_size', self.vocab_size, 'use 258 or more: bytes, a merge, a control token')


@dataclasses.dataclass(frozen=True)
class TiktokenFile:
  """A tiktoken rank file on disk (GPT-2, cl100k, Llama 3).

  control: names of the ids after the ranks, in order; '' leaves one unused (cl100k: ('', '<|endoftext|>')).
  end_of_text: the one of them that separates documents; None means the first that has a name.
  """
  path: str
  pattern: str = 'cl100k'
  control: tuple[str, ...] = ('<|endoftext|>',)
  split_digits: bool = False
  end_of_text: str | None = None


@dataclasses.dataclass(frozen=True)
class HuggingFaceFile:
  """A `tokenizer.json`. end_of_text: its control token that separates documents."""
  path: str
  end_of_text: str = '<|endoftext|>'


Tokenizer = Bytes | BPE | TiktokenFile | HuggingFaceFile


# ---------------------------------------------------------------------------------------------- data
# `held_out` is the fraction set aside for evaluation: by hash of the document's key, or, where a source is one single
# document, its tail.
@dataclasses.dataclass(frozen=True)
class StandardLibrary:
  """Source code of the running interpreter's standard library, tests excluded: about 10 MB, always at hand."""
  held_out: float = 0.05


@dataclasses.dataclass(frozen=True)
class Text:
  """`.txt` files: a path, a folder or a glob; each file is one document."""
  path: str
  held_out: float = 0.1


@dataclasses.dataclass(frozen=True)
class Jsonl:
  """One JSON object a line (optionally .gz), the text under `field`. on_error: 'fail' or 'skip' (counted)."""
  path: str
  field: str = 'text'
  held_out: float = 0.01
  on_error: str = 'fail'

  def __post_init__(self):
    require(self.on_error in ('fail', 'skip'), 'on_error', self.on_error, "use 'fail' or 'skip'")


@dataclasses.dataclass(frozen=True)
class Parquet:
  """Parquet files, the text in column `field`."""
  path: str
  field: str = 'text'
  held_out: float = 0.01


@dataclasses.dataclass(frozen=True)
class ArrayRecord:
  """ArrayRecord files whose records are UTF-8 text."""
  path: str
  held_out: float = 0.01


@dataclasses.dataclass(frozen=True)
class TokenFile:
  """A raw memmap of token ids ('uint16' or 'uint32'), documents ended by `separator` (None: one document)."""
  path: str
  dtype: str = 'uint16'
  separator: int | None = None
  held_out: float = 0.01

  def __post_init__(self):
    require(self.dtype in ('uint16', 'uint32'), 'dtype', self.dtype, "use 'uint16' or 'uint32'")


Source = StandardLibrary | Text | Jsonl | Parquet | ArrayRecord | TokenFile


@dataclasses.dataclass(frozen=True)
class Weighted:
  """A source and its share of the mixture."""
  source: Source
  weight: float = 1.0

  def __post_init__(self):
    require(math.isfinite(self.weight) and self.weight > 0, 'weight', self.weight, 'use a finite weight above 0')


@dataclasses.dataclass(frozen=True)
class Data:
  """A weighted mixture of sources, packed into rows of the stage's context.

  packing: 'split' concatenates documents and cuts every `context` tokens; 'best_fit' keeps documents whole where they
  fit (Ding et al. 2024) and pads.
  """
  sources: tuple[Weighted, ...]
  packing: str = 'split'

  def __post_init__(self):
    require(len(self.sources) > 0, 'sources', self.sources, 'name at least one source')
    require(self.packing in ('split', 'best_fit'), 'packing', self.packing, "use 'split' or 'best_fit'")


# ---------------------------------------------------------------------------------------------- objectives
@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """Next-token cross-entropy, plus z_loss x logsumexp^2 (PaLM, section 5: 1e-4)."""
  z_loss: float = 0.0


Objective = LanguageModel


# ---------------------------------------------------------------------------------------------- stages
@dataclasses.dataclass(frozen=True)
class Stage:
  """One stretch of training with one objective and one data mixture. Its boundary is a checkpoint.

  init: ('scratch',); ('resume', stage): that stage's parameters, optimizer state and EMA; ('params', stage): its
  parameters alone, averaged where it kept an average.
  Steps count from 0 in every stage, and schedules are functions of them.
  batch_size: sequences per step over all devices; microbatches: how many pieces it is computed in.
  max_nonfinite: a step whose gradient is not finite changes nothing; after this many in a row the run halts.
  ema: decay of an exponential moving average of the parameters kept beside them, or None.
  remat: 'none' keeps activations, 'block' recomputes each block, 'dots' keeps matmul results.
  """
  name: str
  data: Data
  steps: int
  context: int
  batch_size: int
  learning_rate: Schedule
  optimizer: Optimizer = AdamW()
  objective: Objective = LanguageModel()
  init: tuple[str, ...] = ('scratch',)
  microbatches: int = 1
  clip_norm: float | None = 1.0
  max_nonfinite: int = 10
  ema: float | None = None
  remat: str = 'none'
  eval_every: int = 0            # steps between held-out evaluations; 0: only at the end
  eval_batches: int = 16         # batches per evaluation during training; the one at the end reads all of held-out
  sample_every: int = 0          # steps between samples; 0: none
  prompts: tuple[str, ...] = ()
  sample_tokens: int = 96

  def __post_init__(self):
    plain = bool(self.name) and '/' not in self.name and not self.name.startswith('.')
    require(plain, 'name', self.name, 'use a plain word')
    for field, least in (('steps', 0), ('context', 1), ('batch_size', 1), ('microbatches', 1), ('max_nonfinite', 1),
                         ('eval_every', 0), ('eval_batches', 1), ('sample_every', 0), ('sample_tokens', 1)):
      require(getattr(self, field) >= least, field, getattr(self, field), f'use {least} or more')
    require(self.batch_size % self.microbatches == 0, 'microbatches', self.microbatches,
            f'use a divisor of batch_size={self.batch_size}')
    require(self.clip_norm is None or self.clip_norm > 0, 'clip_norm', self.clip_norm, 'use a number above 0, or None')
    require(self.ema is None or 0 < self.ema < 1, 'ema', self.ema, 'use a decay rate in (0, 1), or None')
    require(self.remat in ('none', 'block', 'dots'), 'remat', self.remat, "use 'none', 'block' or 'dots'")
    kinds = {'scratch': 1, 'resume': 2, 'params': 2}
    require(bool(self.init) and kinds.get(self.init[0]) == len(self.init), 'init', self.init,
            "use ('scratch',), ('resume', stage) or ('params', stage)")
    require(getattr(self.learning_rate, 'warmup', 0) <= self.steps, 'learning_rate.warmup', self.learning_rate.warmup,
            f'warm-up is longer than the stage: use at most steps={self.steps}')

  @property
  def tokens_per_step(self) -> int:
    return self.batch_size * self.context


# ---------------------------------------------------------------------------------------------- the run
@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices along each axis; one of them may be -1: all that are left."""
  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  context: int = 1
  expert: int = 1

  def __post_init__(self):
    sizes = dataclasses.asdict(self)
    for axis, size in sizes.items():
      require(size >= 1 or size == -1, axis, size, 'use a positive number of devices, or -1 for all that are left')
    left = [axis for axis, size in sizes.items() if size == -1]
    require(len(left) <= 1, left[-1] if left else '', -1, f'only one axis may be -1, found {left}')


@dataclasses.dataclass(frozen=True)
class Checkpoints:
  """every: steps between checkpoints, beside those at a stage's end and on SIGTERM (0: only those).

  keep: so many of the newest stay.
  """
  every: int = 1_000
  keep: int = 2

  def __post_init__(self):
    require(self.every >= 0, 'every', self.every, 'use 0 or more')
    require(self.keep >= 1, 'keep', self.keep, 'use 1 or more')


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything that an experiment states.

  dtype: of the computation, 'float32', 'bfloat16', or 'auto' (bfloat16 on accelerators, float32 on CPU); parameters are
  float32.
  """
  model: Architecture
  stages: tuple[Stage, ...]
  tokenizer: Tokenizer = Bytes()
  mesh: Mesh = Mesh()
  checkpoints: Checkpoints = Checkpoints()
  seed: int = 0
  dtype: str = 'auto'
  stall_seconds: float = 1_800.0  # a process that finishes no step for so long ends with exit code 70
  log_every: int = 1  # steps between training records in metrics.jsonl and TensorBoard

  def __post_init__(self):
    require(self.dtype in ('auto', 'float32', 'bfloat16'), 'dtype', self.dtype, "use 'auto', 'float32' or 'bfloat16'")
    require(self.stall_seconds > 0, 'stall_seconds', self.stall_seconds, 'use a number of seconds above 0')
    require(len(self.stages) > 0, 'stages', self.stages, 'give at least one stage')
    require(self.log_every >= 1, 'log_every', self.log_every, 'use 1 or more')
    earlier: list[str] = []
    for i, stage in enumerate(self.stages):
      path = f'stages[{i}]'
      require(stage.name not in earlier, f'{path}.name', stage.name, 'stage names must differ')
      if stage.init[0] != 'scratch' and stage.init[1] not in earlier:
        raise ConfigError(f'{path}.init', stage.init, f'name an earlier stage, one of {earlier}')
      if stage.init[0] == 'resume':
        parent = self.stages[earlier.index(stage.init[1])]
        require(type(stage.optimizer) is type(parent.optimizer), f'{path}.optimizer', stage.optimizer,
                f"init=('resume', {parent.name!r}) needs that stage's optimizer, or use ('params', {parent.name!r})")
        require((stage.ema is None) == (parent.ema is None), f'{path}.ema', stage.ema,
                f"init=('resume', {parent.name!r}): both stages keep an average or neither; set one, or use 'params'")
      limit = self.model.max_length
      require(limit is None or stage.context <= limit, f'{path}.context', stage.context,
              f'the learned positions end at model.positions.max_length={limit}: shorten the context or lengthen '
              'the table')
      earlier.append(stage.name)
    if isinstance(self.tokenizer, BPE | Bytes):
      needs = self.tokenizer.vocab_size if isinstance(self.tokenizer, BPE) else 257
      require(self.model.vocab_size >= needs, 'model.vocab_size', self.model.vocab_size,
              f'smaller than the tokenizer\'s: use {needs} or more')
