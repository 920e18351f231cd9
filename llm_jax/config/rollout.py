"""How a stage makes the answers that it learns from: sampled from the model as it is, and scored."""
import dataclasses
import math

from llm_jax.config.data import Data
from llm_jax.config.errors import require
from llm_jax.config.fields import Safe, Seconds, Sequences, Tokens
from llm_jax.config.rewards import Reward, Rewarded
from llm_jax.config.rows import TEXT

__all__ = ['PretrainingLoss', 'Rollout']

FEWER_ROWS = 0.75  # of one bucket, from those of the one before
HALVES, SHORTEST = 2, 16  # lengths of rows of one answer, and the least tokens of one


@dataclasses.dataclass(frozen=True)
class Rollout(Rewarded):
  """Answers to prompts, sampled with the parameters that a stage has reached, scored, and learnt from.

  One rollout is learnt from in `minibatches` x `replays` steps. Each takes the stage's `batch_size` answers, so that a
  rollout has minibatches x batch_size of them, to a share of 1 / `answers` as many prompts. Where the objective
  compares two answers, each step takes `batch_size` pairs, the best and the worst answers to as many prompts.

  The softmax that is sampled from is never cut: what top-k or top-p leave out would be missing in the log-probabilities
  that are learnt from.

  rewards: what scores an answer. Its reward is the weighted sum; one of weight 0 is recorded beside it. Distillation
    needs none.
  answers: sampled to every prompt, one group.
  max_new_tokens: the most tokens of an answer.
  temperature: divides the logits, in sampling and in what is learnt.
  minibatches: steps in which every answer of a rollout is learnt from once.
  replays: how often it is.
  buckets: the answers of a step share rows of `seq_len` tokens. So many numbers of rows are compiled ahead, from
    `batch_size` down, each a quarter less than the one before; a step takes the least that its answers fit into.
  rows_at_once: answers that are sampled at a time; None: all of a rollout.
  tools: functions of yours that the model may call while it answers, 'tools.py:add' each. A call is JSON between
    <tool_call> and </tool_call>; what it returns is text that the model reads, and not learnt.
  turns: how often the model speaks in one answer, the last time without a call being answered.
  tool_tokens: the most tokens of what the calls of a turn return.
  tool_seconds: that a call may take.
  samples_every: rollouts between two whose answers are written to generations.jsonl; 0: none.
  """
  rewards: tuple[Reward, ...] = ()
  answers: int = 8
  max_new_tokens: Tokens = 128
  temperature: float = 1.0
  minibatches: int = 1
  replays: int = 1
  buckets: int = 4
  rows_at_once: Safe[Sequences | None] = None
  tools: tuple[str, ...] = ()
  turns: int = 1
  tool_tokens: Tokens = 128
  tool_seconds: Seconds = 5.0
  samples_every: Safe[int] = 25

  def __post_init__(self):
    for field in ('answers', 'max_new_tokens', 'minibatches', 'replays', 'buckets'):
      require(getattr(self, field) >= 1, field, getattr(self, field), 'use 1 or more')
    require(self.buckets <= 8, 'buckets', self.buckets, 'each is compiled: use 8 or fewer')
    require(1e-3 <= self.temperature < math.inf, 'temperature', self.temperature,
            'use a finite number of 0.001 or more: without chance all answers of a group are the same')
    require(self.rows_at_once is None or self.rows_at_once >= 1, 'rows_at_once', self.rows_at_once,
            'use 1 or more, or None for all')
    self._check_tools()
    require(self.samples_every >= 0, 'samples_every', self.samples_every, 'use 0 or more')

  def _check_tools(self) -> None:
    for i, path in enumerate(self.tools):
      file, _, function = path.rpartition(':')
      require(file.endswith('.py') and function.isidentifier(), f'tools[{i}]', path,
              "name a file and a function of it, such as 'tools.py:add'")
    hint = 'use 2 or more, so that the model speaks again' if self.tools else 'there are no tools: use 1'
    require((self.turns > 1) == bool(self.tools), 'turns', self.turns, hint)
    require(self.tool_tokens >= 1, 'tool_tokens', self.tool_tokens, 'use 1 or more')
    require(0 < self.tool_seconds < math.inf, 'tool_seconds', self.tool_seconds, 'use a finite number above 0')

  @property
  def steps(self) -> int:
    """That one rollout is learnt from in."""
    return self.minibatches * self.replays

  def row_counts(self, batch_size: int, unit: int = 1) -> tuple[int, ...]:
    """How many rows a step may have, the most first.   unit: each is a multiple of it, such as microbatches."""
    wanted = [batch_size * FEWER_ROWS ** k for k in range(self.buckets)]
    counts = {min(unit * math.ceil(count / unit), batch_size) for count in wanted}
    return tuple(sorted(counts, reverse=True))

  def lengths(self, seq_len: int) -> tuple[int, ...]:
    """What rows of one answer each are padded to, the longest first."""
    halves = [seq_len >> k for k in range(HALVES)]
    return tuple(length for k, length in enumerate(halves)
                 if k == 0 or (length << k == seq_len and length >= SHORTEST))


@dataclasses.dataclass(frozen=True)
class PretrainingLoss:
  """Text that a stage learns beside its own answers, so that it does not forget what it was pretrained on: weight x the
  mean cross-entropy of its tokens is added to every step's loss (Ouyang et al. 2022, InstructGPT, equation 2, PPO-ptx:
  gamma is 27.8 there).

  data: text or conversations, a `mix` of sources, in rows of the stage's sequence length.
  batch_size: rows of a step over all devices.
  weight: gamma.
  """
  data: Data
  batch_size: Sequences
  weight: float = 1.0

  def __post_init__(self):
    require(self.data.rows == TEXT, 'data', [type(part.source).__name__ for part in self.data.sources],
            f'has {self.data.rows.name}: use text or conversations')
    require(self.batch_size >= 1, 'batch_size', self.batch_size, 'use 1 or more')
    require(0 < self.weight < math.inf, 'weight', self.weight, 'use a finite number above 0')
    has_schedule = any(isinstance(part.weight, tuple) for part in self.data.sources)
    require(not has_schedule, 'data', [part.weight for part in self.data.sources],
            'text beside answers is mixed by weights that stay: use numbers')
