"""Reward models: a score of an answer, learnt from pairs of which one is preferred, or from several in their order.

Shapes: B batch.
"""
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.batch import LanguageModelBatch, PreferenceBatch, RankedBatch
from llm_jax.config.data import Data
from llm_jax.config.preferences import RewardModel
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.loss import Loss, Params, pair_cross_entropy, sums_by_source
from llm_jax.objectives.protocol import Objective
from llm_jax.objectives.scalar_head import REWARD, init_scalar_head, sequence_scores


class Pairs(NamedTuple):
  """Pairs of answers, float32 [pairs, batch].

  chosen, rejected: their scores.
  weight: what a pair counts for; those of one prompt sum to 1, or to 0 where there is none.
  margin: by how much the chosen score has to be higher.
  probability: that the chosen answer is the better one.
  """
  chosen: jax.Array
  rejected: jax.Array
  weight: jax.Array
  margin: jax.Array | float = 0.0
  probability: jax.Array | float = 1.0


@dataclasses.dataclass(frozen=True)
class RewardModelObjective(Objective):
  """Sum over prompts of the mean over their pairs of the loss that `config.RewardModel` states; weight counts the
  prompts. Rows of pairs are prompts of one pair.

  Parameters are the decoder's and, under `reward`, the head's. With an rng, dropout is active.
  Rows without a target (padding of the last validation batch) do not count.
  Metrics: 'accuracy' (the chosen answer has the higher score), 'reward_chosen' and 'reward_rejected', the scores,
  'reward_margin', their difference, and 'reward_mean', the mean of both.
  """
  config: RewardModel = RewardModel()
  own_parameters: ClassVar[tuple[str, ...]] = (REWARD,)

  def __call__(self, params: Params, frozen: Frozen, batch: PreferenceBatch | RankedBatch, rng: jax.Array | None,
               statistics: None = None) -> Loss:
    match batch:
      case PreferenceBatch():
        pairs = self.pairs_of_two(params, batch, rng)
      case RankedBatch():
        pairs = self.pairs_of_ranked(params, batch, rng)
    difference = pairs.chosen - pairs.rejected
    mean = (pairs.chosen + pairs.rejected) / 2
    loss = pair_cross_entropy(difference - pairs.margin, pairs.probability)
    loss += self.config.center * jnp.square(2 * mean)

    loss_B = (pairs.weight * loss).sum(0)
    is_prompt_B = (pairs.weight.sum(0) > 0).astype(jnp.float32)
    per_pair = {
      'accuracy': difference > 0,
      'reward_chosen': pairs.chosen,
      'reward_rejected': pairs.rejected,
      'reward_margin': difference,
      'reward_mean': mean,
    }
    metrics = {name: (pairs.weight * value).sum() for name, value in per_pair.items()}
    metrics |= sums_by_source(self.sources, batch.sources, loss_B, is_prompt_B)
    return Loss(loss_B.sum(), is_prompt_B.sum(), jax.lax.stop_gradient(metrics))

  def pairs_of_two(self, params: Params, batch: PreferenceBatch, rng: jax.Array | None) -> Pairs:
    chosen_B, rejected_B = self.scores(params, (batch.chosen, batch.rejected), rng)
    is_pair_B = (batch.rejected.weights.sum(-1) > 0).astype(jnp.float32)
    margin = 0.0 if batch.margins is None else self.config.margin * batch.margins
    probability = 1.0 if batch.soft_labels is None else batch.soft_labels
    return Pairs(chosen_B[None], rejected_B[None], is_pair_B[None], margin, probability)

  def pairs_of_ranked(self, params: Params, batch: RankedBatch, rng: jax.Array | None) -> Pairs:
    """Every two answers to the same prompt that differ in rank. All are read once."""
    scores = self.scores(params, batch.answers, rng)
    ranks = jnp.stack(batch.ranks)  # [answers, batch], as the scores
    one, other = np.triu_indices(len(batch.ranks), 1)
    is_swapped = ranks[one] > ranks[other]
    first, second = scores[one], scores[other]
    chosen = jnp.where(is_swapped, second, first)
    rejected = jnp.where(is_swapped, first, second)
    is_here = (ranks[one] > 0) & (ranks[other] > 0)
    is_pair = (is_here & (ranks[one] != ranks[other])).astype(jnp.float32)
    return Pairs(chosen, rejected, is_pair / jnp.maximum(is_pair.sum(0), 1))

  def scores(self, params: Params, sides: Sequence[LanguageModelBatch], rng: jax.Array | None) -> jax.Array:
    """Of all answers in one forward pass, float32 [sides, batch]."""
    together = jax.tree.map(lambda *parts: jnp.concatenate(parts), *sides)
    return jnp.stack(jnp.split(sequence_scores(self.model, params, together, rng), len(sides)))

  def init_parameters(self, data: Data, rng: jax.Array) -> Params:
    return {REWARD: init_scalar_head(self.model.config, rng)}
