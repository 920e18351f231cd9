"""Reward models: a score of an answer, learnt from pairs of which one is preferred.

Shapes: B batch.
"""
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from llm_jax.batch import PreferenceBatch
from llm_jax.config.data import Data
from llm_jax.config.preferences import RewardModel
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.loss import Loss, Params, pair_cross_entropy, sums_by_source
from llm_jax.objectives.protocol import Objective
from llm_jax.objectives.scalar_head import REWARD, init_scalar_head, sequence_scores


@dataclasses.dataclass(frozen=True)
class RewardModelObjective(Objective):
  """Sum over pairs of the loss that `config.RewardModel` states; weight counts the pairs.

  Parameters are the decoder's and, under `reward`, the head's. With an rng, dropout is active.
  Pairs without a target (padding of the last validation batch) do not count.
  Metrics: 'accuracy' (the chosen answer has the higher score), 'reward_chosen' and 'reward_rejected', the scores,
  'reward_margin', their difference, and 'reward_mean', the mean of both.
  """
  config: RewardModel = RewardModel()
  own_parameters: ClassVar[tuple[str, ...]] = (REWARD,)

  def __call__(self, params: Params, frozen: Frozen, batch: PreferenceBatch, rng: jax.Array | None,
               statistics: None = None) -> Loss:
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch.chosen, batch.rejected)
    chosen_B, rejected_B = jnp.split(sequence_scores(self.model, params, both, rng), 2)
    margin_B = 0.0 if batch.margins is None else self.config.margin * batch.margins
    mean_B = (chosen_B + rejected_B) / 2
    probability_B = 1.0 if batch.soft_labels is None else batch.soft_labels
    loss_B = pair_cross_entropy(chosen_B - rejected_B - margin_B, probability_B)
    loss_B += self.config.center * jnp.square(2 * mean_B)

    weight_B = (batch.rejected.weights.sum(-1) > 0).astype(jnp.float32)
    per_pair = {
      'accuracy': (chosen_B > rejected_B).astype(jnp.float32),
      'reward_chosen': chosen_B,
      'reward_rejected': rejected_B,
      'reward_margin': chosen_B - rejected_B,
      'reward_mean': mean_B,
    }
    metrics = {name: (weight_B * value_B).sum() for name, value_B in per_pair.items()}
    metrics |= sums_by_source(self.sources, batch.sources, weight_B * loss_B, weight_B)
    return Loss((weight_B * loss_B).sum(), weight_B.sum(), jax.lax.stop_gradient(metrics))

  def init_parameters(self, data: Data, rng: jax.Array) -> Params:
    return {REWARD: init_scalar_head(self.model.config, rng)}
