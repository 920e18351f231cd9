"""How a stage makes the answers that it learns from: sampled from the model as it is, and scored."""
import dataclasses
import math

from llm_jax.config.errors import require
from llm_jax.config.fields import Safe, Sequences, Tokens
from llm_jax.config.rewards import Reward, Rewarded

__all__ = ['Rollout']

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
  samples_every: Safe[int] = 25

  def __post_init__(self):
    for field in ('answers', 'max_new_tokens', 'minibatches', 'replays', 'buckets'):
      require(getattr(self, field) >= 1, field, getattr(self, field), 'use 1 or more')
    require(self.buckets <= 8, 'buckets', self.buckets, 'each is compiled: use 8 or fewer')
    require(1e-3 <= self.temperature < math.inf, 'temperature', self.temperature,
            'use a finite number of 0.001 or more: without chance all answers of a group are the same')
    require(self.rows_at_once is None or self.rows_at_once >= 1, 'rows_at_once', self.rows_at_once,
            'use 1 or more, or None for all')
    require(self.samples_every >= 0, 'samples_every', self.samples_every, 'use 0 or more')

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
