"""What a run is: a model, a tokenizer, a mesh and a tuple of stages. Frozen, checked when made, free of jax.

Its parts are in `stage.py`, `data.py`, `sources.py`, `tokenizers.py`, `objectives.py`, `optimizers.py`, `schedules.py`,
`phases.py`, `starts.py` and `evaluations.py`; import them from here.
"""
import dataclasses

from llm_jax.config.errors import ConfigError, require
from llm_jax.config.model.architecture import Architecture, RoPE
from llm_jax.config.stage import Stage
from llm_jax.config.stage_init import Member, members_of
from llm_jax.config.tokenizers import BPE, Bytes, Tokenizer

__all__ = ['Checkpoints', 'Mesh', 'Run']


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
  context_attention: where mesh.context splits the sequences, 'gather' brings all keys and values to every device, and
  'ring' passes them round, for contexts so long that they do not fit.
  """
  model: Architecture
  stages: tuple[Stage, ...]
  tokenizer: Tokenizer = Bytes()
  mesh: Mesh = Mesh()
  checkpoints: Checkpoints = Checkpoints()
  seed: int = 0
  dtype: str = 'auto'
  context_attention: str = 'gather'
  stall_seconds: float = 1_800.0  # a process that finishes no step for so long ends with exit code 70
  log_every: int = 1  # steps between training records in metrics.jsonl and TensorBoard

  def __post_init__(self):
    require(-2**63 <= self.seed < 2**63, 'seed', self.seed, 'use a number of 64 bits')
    require(self.dtype in ('auto', 'float32', 'bfloat16'), 'dtype', self.dtype, "use 'auto', 'float32' or 'bfloat16'")
    require(self.context_attention in ('gather', 'ring'), 'context_attention', self.context_attention,
            "use 'gather' or 'ring'")
    require(self.stall_seconds > 0, 'stall_seconds', self.stall_seconds, 'use a number of seconds above 0')
    require(len(self.stages) > 0, 'stages', self.stages, 'give at least one stage')
    require(self.log_every >= 1, 'log_every', self.log_every, 'use 1 or more')
    earlier: list[str] = []
    for i, stage in enumerate(self.stages):
      path = f'stages[{i}]'
      require(stage.name not in earlier, f'{path}.name', stage.name, 'stage names must differ')
      for parent in stage.parents:
        if parent not in earlier:
          at = next((k for k, each in enumerate(stage.init) if isinstance(each, Member) and each.stage == parent), None)
          raise ConfigError(f'{path}.init' + (f'[{at}].stage' if at else ''), parent if at else stage.init,
                            f'name an earlier stage, one of {earlier}')
      if stage.init[0] == 'average':
        self._check_average(stage, path)
      if stage.init[0] == 'resume':
        parent = self.stages[earlier.index(stage.init[1])]
        require(type(stage.optimizer) is type(parent.optimizer), f'{path}.optimizer', stage.optimizer,
                f"init=('resume', {parent.name!r}) needs that stage's optimizer, or use ('params', {parent.name!r})")
        require(stage.data.labels == parent.data.labels, f'{path}.init', stage.init,
                f"{parent.name} has other classes, or none, and so other parameters: use ('params', {parent.name!r})")
        require((stage.ema is None) == (parent.ema is None), f'{path}.ema', stage.ema,
                f"init=('resume', {parent.name!r}): both stages keep an average or neither; set one, or use 'params'")
      require(stage.positions is None or isinstance(self.model.positions, RoPE), f'{path}.positions', stage.positions,
              f'the model has {type(self.model.positions).__name__}, which nothing can stretch')
      limit = self.model.max_length
      longest = max(phase.seq_len for phase in stage.phases)
      require(limit is None or longest <= limit, f'{path}.seq_len', longest,
              f'the learned positions end at model.positions.max_length={limit}: shorten seq_len or lengthen '
              'the table')
      positions = self.model_of(stage).positions
      meant = positions.max_length if isinstance(positions, RoPE) else None
      require(meant is None or longest <= meant, f'{path}.seq_len', longest,
              f'the positions are meant for {meant} tokens (max_length): stretch them with '
              f'{path}.positions=RoPE(theta, scaling, max_length={longest}), or shorten seq_len')
      for k, evaluation in enumerate(stage.evals):
        longest = max(evaluation.row_lengths, default=0)
        require(limit is None or longest <= limit, f'{path}.evals[{k}].seq_lens', longest,
                f'the learned positions end at model.positions.max_length={limit}: ask for shorter ones')
      earlier.append(stage.name)
    if isinstance(self.tokenizer, BPE | Bytes):
      needs = self.tokenizer.vocab_size if isinstance(self.tokenizer, BPE) else 257
      require(self.model.vocab_size >= needs, 'model.vocab_size', self.model.vocab_size,
              f'smaller than the tokenizer\'s: use {needs} or more')

  def _check_average(self, stage: Stage, path: str) -> None:
    """Whether the checkpoints that a stage averages will be made and kept, and are of one model."""
    every, by_name = self.checkpoints.every, {each.name: each for each in self.stages}
    members = members_of(stage.init)
    for parent in stage.parents:
      ends = next((each for each in by_name[parent].evals if each.may_end_stage), None)
      require(ends is None, f'{path}.init', stage.init,
              f'{parent} may end before its last step ({ends and ends.name}), nobody knows at which: average a stage '
              "after it, or use ('params', ...)")
    if not members:
      _, name, count = stage.init
      require(count <= self.checkpoints.keep, 'checkpoints.keep', self.checkpoints.keep,
              f'{path}.init averages {count} checkpoints: keep as many')
      steps = by_name[name].steps
      made = max(1, -(-steps // every)) if every else 1
      require(count <= made, f'{path}.init', stage.init,
              f'{name} makes {made} in its {steps} steps: lower n, or save more often (checkpoints.every={every})')
    named = [(member.stage, member.step or by_name[member.stage].steps) for member in members]
    for k, (name, step) in enumerate(named):
      steps = by_name[name].steps
      require(step == steps or step < steps and every and step % every == 0, f'{path}.init[{k + 1}].step', step,
              f'{name} saves its last step, {steps}, ' + (f'and the multiples of checkpoints.every={every} before it' if
                                                          every else 'and no other while checkpoints.every=0'))
      require((name, step) not in named[:k], f'{path}.init[{k + 1}]', f'{name}/{step}',
              'is named twice: give it a larger weight')
    models = [self.model_of(by_name[parent]) for parent in stage.parents]
    require(stage.positions is not None or all(model == models[0] for model in models), f'{path}.positions', None,
            f'{", ".join(stage.parents)} have different ones: say which the mean has')

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
