"""An evaluation of answers by verifiers that the stage does not learn from."""
import dataclasses
import math
from typing import ClassVar

from llm_jax.config.errors import require
from llm_jax.config.evaluation import EvaluationConfig, check_every
from llm_jax.config.fields import Safe, Sequences, Steps, Tokens
from llm_jax.config.prompt_sources import PromptSource
from llm_jax.config.rewards import WithoutModel

__all__ = ['VerifiedAnswers']


@dataclasses.dataclass(frozen=True)
class VerifiedAnswers(EvaluationConfig):
  """Greedy and sampled answers to held-out prompts, looked at by verifiers that the stage does not learn from, at the
  start and at the end. For stages of any kind that can answer.

  prompts: of which those that are held out are asked.
  checks: what looks at an answer, each by itself: the rewards of rollouts that need no model.
  count: how many prompts are answered, spread over those that are held out.
  max_new_tokens: the most tokens of an answer.
  temperature: of the sampled answers.
  every: steps between evaluations; 0: only the two.
  rows_at_once: answers that are sampled at a time; None: all.
  """
  prompts: PromptSource
  checks: tuple[WithoutModel, ...]
  count: int = 256
  max_new_tokens: Tokens = 128
  temperature: float = 1.0
  every: Steps = 0
  rows_at_once: Safe[Sequences | None] = None
  implementation: ClassVar[str] = 'llm_jax.evaluation.verified_answers:VerifiedAnswersEvaluation'

  def __post_init__(self):
    check_every(self.every)
    require(len(self.checks) > 0, 'checks', self.checks, 'name at least one, such as Exact()')
    require(self.count >= 1, 'count', self.count, 'use 1 or more')
    require(self.max_new_tokens >= 1, 'max_new_tokens', self.max_new_tokens, 'use 1 or more')
    require(1e-3 <= self.temperature < math.inf, 'temperature', self.temperature, 'use a number from 0.001 on')
