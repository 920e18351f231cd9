"""Whether answers to held-out prompts get the rewards of the stage."""
import dataclasses
import functools

import jax
import numpy as np

from llm_jax.config.evaluations import PassRate
from llm_jax.data.prompts import Prompt, PromptSet
from llm_jax.decode.sampling import GREEDY, Greedy, Sampling
from llm_jax.evaluation.protocol import Evaluated, Evaluation, Metrics, Moment, Result
from llm_jax.objectives.frozen import Frozen
from llm_jax.rollout.model_rewards import make_model_scorer
from llm_jax.rollout.rewards import ModelScorer, Rewards
from llm_jax.rollout.sampling import Answer, Sampler
from llm_jax.rollout.turns import TurnSampler, make_sampler
from llm_jax.sharding.rules import batch_sharding, placed

SHOWN = 4  # answers that are written down


@dataclasses.dataclass(frozen=True)
class Scored:
  """Answers, what decides whether they pass, and their rewards, float64 [answers].

  parts: each reward by itself, not weighted.
  """
  answers: list[Answer]
  deciding: np.ndarray
  rewards: np.ndarray
  parts: dict[str, np.ndarray]

  def share(self, passing: float) -> float:
    return float((self.deciding >= passing).mean())


class PassRateEvaluation(Evaluation):
  """Greedy and sampled answers to held-out prompts; the run's seed alone decides the draw, so that steps can be
  compared."""
  at_start = True
  config: PassRate

  @property
  def every(self) -> int:
    return self.config.every

  @property
  def held_out(self) -> PromptSet | None:
    return self.setup.data[self.setup.stage.name].held_out_prompts

  def applies(self) -> bool:
    return self.held_out is not None

  def run(self, model: Evaluated, start: Metrics) -> Result:
    answering, prompts = self.setup.stage.answering, self.held_out
    assert answering is not None and prompts is not None
    chosen = prompts.first(self.config.prompts)
    model.heartbeat()
    greedy = self.score(model, prompts, chosen, 1, GREEDY)
    sampling = Sampling(self.config.temperature or answering.temperature)
    sampled = self.score(model, prompts, chosen, self.config.samples, sampling)
    metrics = {
      'pass_greedy': greedy.share(self.config.passing),
      'pass_sampled': sampled.share(self.config.passing),
      'reward_greedy': float(greedy.rewards.mean()),
      'reward_sampled': float(sampled.rewards.mean()),
      'distinct_greedy': len({answer.text for answer in greedy.answers}) / len(greedy.answers),
    }
    if len(answering.rewards) > 1:
      for kind, scored in (('greedy', greedy), ('sampled', sampled)):
        metrics |= {f'reward_{kind}/{name}': float(scores.mean()) for name, scores in scored.parts.items()}
    found = f'{metrics["pass_greedy"]:.1%} greedy, {metrics["pass_sampled"]:.1%} sampled'
    generations = tuple((answer.prompt.text, f'{answer.text}\n[reward {reward:.3g}]')
                        for answer, reward in zip(greedy.answers[:SHOWN], greedy.rewards, strict=False))
    if model.moment is Moment.START:
      return Result(metrics)
    before = f'{start["pass_greedy"]:.0%} → ' if start else ''
    return Result(metrics, status=f'held-out answers that pass at step {model.step:,}: {found}',
                  headline=f'{before}{metrics["pass_greedy"]:.0%} pass', generations=generations)

  def score(self, model: Evaluated, prompts: PromptSet, chosen: list[Prompt], samples: int, sampling: Greedy | Sampling
            ) -> Scored:
    """Answers and their rewards."""
    answering, seed = self.setup.stage.answering, self.setup.run.seed
    assert answering is not None
    answers = self.sampler.answers(model.params, chosen, samples, sampling, jax.random.key(seed))
    rewards = Rewards(answering)
    scores = rewards.score(answers, self.by_model(model.frozen, prompts, samples))
    parts = dict(zip(rewards.names, scores, strict=True))
    weighted = rewards.weighted(scores)
    return Scored(answers, weighted if self.config.reward is None else parts[self.config.reward], weighted, parts)

  @functools.cached_property
  def sampler(self) -> Sampler | TurnSampler:
    setup, answering, prompts = self.setup, self.setup.stage.answering, self.held_out
    assert answering is not None and prompts is not None
    sampler = Sampler(setup.model, setup.execution, setup.tokenizer, prompts.stop_tokens, answering.max_new_tokens,
                      answering.rows_at_once)
    return make_sampler(sampler, answering, prompts)

  def by_model(self, frozen: Frozen, prompts: PromptSet, group: int) -> ModelScorer:
    stage = self.setup.stage
    assert stage.answering is not None
    place = functools.partial(placed, sharding=batch_sharding(self.setup.mesh))
    return make_model_scorer(stage.answering, frozen, prompts, group,
                             self.setup.phase.batch_size // self.setup.phase.microbatches,
                             stage.answering.lengths(stage.seq_len), place)
