"""Whether answers to held-out prompts get the rewards of the stage."""
from typing import Any

import jax
import numpy as np

from llm_jax.config.evaluations import PassRate
from llm_jax.data.prompts import Prompt, PromptSet
from llm_jax.decode.sampling import GREEDY, Greedy, Sampling
from llm_jax.evaluation.protocol import Evaluated, Evaluation, Metrics, Moment, Result
from llm_jax.rollout.rewards import Rewards
from llm_jax.rollout.sampling import Answer, Sampler

SHOWN = 4  # answers that are written down


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
    rollout, prompts = self.setup.stage.rollout, self.held_out
    assert rollout is not None and prompts is not None
    chosen = prompts.first(self.config.prompts)
    model.heartbeat()
    greedy = self.score(model.params, prompts, chosen, 1, GREEDY)
    sampled = self.score(model.params, prompts, chosen, self.config.samples, Sampling(rollout.temperature))
    metrics = {
      'pass_greedy': share_passed(greedy, self.config.passing),
      'pass_sampled': share_passed(sampled, self.config.passing),
      'reward_greedy': float(greedy[1].mean()),
      'reward_sampled': float(sampled[1].mean()),
    }
    found = f'{metrics["pass_greedy"]:.1%} greedy, {metrics["pass_sampled"]:.1%} sampled'
    generations = tuple((answer.prompt.text, f'{answer.text}\n[reward {reward:.3g}]')
                        for answer, reward in zip(greedy[0][:SHOWN], greedy[1], strict=False))
    if model.moment is Moment.START:
      return Result(metrics)
    before = f'{start["pass_greedy"]:.0%} → ' if start else ''
    return Result(metrics, status=f'held-out answers that pass at step {model.step:,}: {found}',
                  headline=f'{before}{metrics["pass_greedy"]:.0%} pass', generations=generations)

  def score(self, params: Any, prompts: PromptSet, chosen: list[Prompt], samples: int, sampling: Greedy | Sampling
            ) -> tuple[list[Answer], np.ndarray]:
    """Answers and their rewards."""
    setup, rollout = self.setup, self.setup.stage.rollout
    assert rollout is not None
    sampler = Sampler(setup.model, setup.execution, setup.tokenizer, prompts.stop_tokens, rollout.max_new_tokens,
                      rollout.rows_at_once)
    answers = sampler.answers(params, chosen, samples, sampling, jax.random.key(setup.run.seed))
    rewards = Rewards(rollout)
    return answers, rewards.weighted(rewards.score(answers))


def share_passed(scored: tuple[list[Answer], np.ndarray], passing: float) -> float:
  return float((scored[1] >= passing).mean())
