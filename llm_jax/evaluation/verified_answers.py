"""Answers to held-out prompts, looked at by verifiers that the stage does not learn from."""
import functools
from typing import Any

import jax
import numpy as np

from llm_jax.config.data import Data, Weighted
from llm_jax.config.errors import require
from llm_jax.config.evaluations import VerifiedAnswers
from llm_jax.config.rollout import Rollout
from llm_jax.data.prompts import PromptSet, open_prompts
from llm_jax.decode.sampling import GREEDY, Greedy, Sampling
from llm_jax.evaluation.protocol import Evaluated, Evaluation, Metrics, Moment, Result
from llm_jax.harness.statistics import Z
from llm_jax.rollout.rewards import Rewards
from llm_jax.rollout.sampling import Answer, Sampler
from llm_jax.tracking.display import Table

SHOWN = 4  # answers that are written down


class VerifiedAnswersEvaluation(Evaluation):
  """The mean of each check over greedy and over sampled answers, with half the width of its 95 % interval; the run's
  seed alone decides the draw, so that steps and stages can be compared."""
  at_start = True
  config: VerifiedAnswers

  @property
  def every(self) -> int:
    return self.config.every

  @functools.cached_property
  def rollout(self) -> Rollout:
    """How answers are sampled, and the checks as its rewards."""
    return Rollout(self.config.checks, max_new_tokens=self.config.max_new_tokens, temperature=self.config.temperature)

  @functools.cached_property
  def held_out(self) -> PromptSet | None:
    data = Data((Weighted(self.config.prompts),))
    longest = self.setup.stage.seq_len + 1 - self.config.max_new_tokens
    return open_prompts(data, self.setup.tokenizer, 'validation', seed=0, longest=longest)

  def check(self) -> None:
    Rewards(self.rollout)
    require(self.held_out is not None, 'prompts', self.config.prompts, 'none is held out: raise its val_fraction')

  def run(self, model: Evaluated, start: Metrics) -> Result:
    model.heartbeat()
    greedy, checks = self.verify(model.params, GREEDY)
    sampled, checks_of_sampled = self.verify(model.params, Sampling(self.config.temperature))
    metrics = {**measured('greedy', self.rollout.names, checks),
               **measured('sampled', self.rollout.names, checks_of_sampled)}
    if model.moment is Moment.START:
      return Result(metrics)
    found = ', '.join(f'{name} {metrics[f"verified_sampled/{name}"]:.1%}' for name in self.rollout.names)
    generations = tuple((answer.prompt.text, answer.text) for answer in (*greedy[:SHOWN], *sampled[:SHOWN]))
    status = f'sampled answers at step {model.step:,}: {found}'
    if model.moment is not Moment.END:
      return Result(metrics, status=status, generations=generations)
    rows = [row_of(name, start, metrics) for name in self.rollout.names]
    lines = tuple(f'held-out answers, {check}: sampled {now}, greedy {likeliest}' for check, _, now, likeliest in rows)
    table = Table('Verified answers', f'Means over {len(sampled):,} held-out prompts, with half the width of the 95 % '
                  'interval. No stage learns from these verifiers.', self.setup.stage.name,
                  ('check', 'sampled at the start', 'sampled', 'greedy'), tuple(rows))
    return Result(metrics, lines, headline=found, display=(table,), generations=generations)

  def verify(self, params: Any, sampling: Greedy | Sampling) -> tuple[list[Answer], np.ndarray]:
    """One answer to each prompt, and what each check gives it, [checks, answers]."""
    setup, prompts = self.setup, self.held_out
    assert prompts is not None
    sampler = Sampler(setup.model, setup.execution, setup.tokenizer, prompts.stop_tokens, self.config.max_new_tokens,
                      self.config.rows_at_once)
    decoder = {name: tree for name, tree in params.items() if name not in setup.objective.own_parameters}
    answers = sampler.answers(decoder, prompts.first(self.config.count), 1, sampling, jax.random.key(setup.run.seed))
    return answers, Rewards(self.rollout).score(answers)


def row_of(name: str, start: Metrics, now: Metrics) -> tuple[str, str, str, str]:
  """(check, its mean over sampled answers at the start, and at the end, and over greedy ones), as a person reads it."""
  shown = lambda metrics, kind: (f'{metrics[f"verified_{kind}/{name}"]:.1%} ± '
                                 f'{metrics[f"verified_{kind}/{name}_margin_of_error"]:.1%}')
  return name, shown(start, 'sampled') if start else '', shown(now, 'sampled'), shown(now, 'greedy')


def measured(kind: str, names: tuple[str, ...], checks: np.ndarray) -> dict[str, float]:
  """Means and half widths of intervals, by name.   checks: [checks, answers]."""
  metrics: dict[str, float] = {}
  for name, values in zip(names, checks, strict=True):
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    metrics[f'verified_{kind}/{name}'] = float(values.mean())
    metrics[f'verified_{kind}/{name}_margin_of_error'] = float(Z * error)
  return metrics
