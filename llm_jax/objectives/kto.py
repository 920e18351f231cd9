"""Kahneman-Tversky optimisation: learning from answers that are rated one by one (Ethayarajh et al. 2024).

Shapes: B batch.
"""
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.batch import LanguageModelBatch, RatedBatch
from llm_jax.config.preferences import KTO
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.log_probs import sequence_log_probs
from llm_jax.objectives.loss import Loss, Mean, Params, sums_by_source
from llm_jax.objectives.protocol import Objective


@dataclasses.dataclass(frozen=True)
class KTOObjective(Objective):
  """Sum over answers of the loss that `config.KTO` states; weight counts the answers.

  There is no dropout, which would make policy and reference differ where they are the same (as in TRL).
  Metrics, as in TRL: 'reward_desirable' and 'reward_undesirable', beta x the log-ratio, each over its own answers;
  'kl', the z of the loss; 'accuracy', the share of answers on their side of z.
  """
  config: KTO

  @property
  def has_statistics(self) -> bool:
    return True

  def statistics(self, params: Params, frozen: Frozen, batch: RatedBatch, rng: jax.Array | None
                 ) -> dict[str, jax.Array]:
    """The sum of the log-ratios of mismatched answers, and how many these are."""
    log_ratio_B = self.log_ratios(params, frozen, batch.mismatched)
    is_row_B = batch.mismatched.weights.sum(-1) > 0
    sums = {'log_ratio': jnp.where(is_row_B, log_ratio_B, 0).sum(), 'rows': is_row_B.sum().astype(jnp.float32)}
    return jax.lax.stop_gradient(sums)

  def __call__(self, params: Params, frozen: Frozen, batch: RatedBatch, rng: jax.Array | None,
               statistics: Any = None) -> Loss:
    if statistics is None:
      statistics = self.statistics(params, frozen, batch, rng)
    kl = jnp.maximum(statistics['log_ratio'] / jnp.maximum(statistics['rows'], 1), 0)
    log_ratio_B = self.log_ratios(params, frozen, batch.answer)
    is_desirable_B = batch.is_desirable > 0
    advantage_B = jnp.where(is_desirable_B, log_ratio_B - kl, kl - log_ratio_B)
    weight_B = jnp.where(is_desirable_B, self.config.desirable_weight, self.config.undesirable_weight)
    loss_B = weight_B * (1 - jax.nn.sigmoid(self.config.beta * advantage_B))

    counts_B = (batch.answer.weights.sum(-1) > 0).astype(jnp.float32)
    reward_B = self.config.beta * log_ratio_B
    metrics = {
      'kl': kl * counts_B.sum(),
      'accuracy': (counts_B * (advantage_B > 0)).sum(),
      'reward_desirable': _mean(reward_B, counts_B * is_desirable_B),
      'reward_undesirable': _mean(reward_B, counts_B * ~is_desirable_B),
      **sums_by_source(self.sources, batch.sources, counts_B * loss_B, counts_B),
    }
    return Loss((counts_B * loss_B).sum(), counts_B.sum(), jax.lax.stop_gradient(metrics))

  def log_ratios(self, params: Params, frozen: Frozen, side: LanguageModelBatch) -> jax.Array:
    """log p(answer) under the policy less that under the reference, float32 [batch]."""
    reference_B = sequence_log_probs(self.model, jax.lax.stop_gradient(frozen.reference), side)
    return sequence_log_probs(self.model, params, side) - reference_B


def _mean(values_B: jax.Array, counts_B: jax.Array) -> Mean:
  return Mean((values_B * counts_B).sum(), counts_B.sum())
