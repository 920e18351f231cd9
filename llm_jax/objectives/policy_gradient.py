"""Policy gradients over answers that the model has sampled itself: GRPO, DAPO, RLOO and their kin.

Shapes: B batch, T time.
"""
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.batch import RolloutBatch
from llm_jax.config.policy_gradients import Clip, ClipWeight, KLInLoss, PolicyGradient
from llm_jax.objectives.log_probs import answer_log_probs
from llm_jax.objectives.loss import Loss, Maximum, Mean, Metrics, Params
from llm_jax.objectives.pretraining_loss import with_pretraining
from llm_jax.objectives.protocol import Objective

MOST_LOG_RATIO = 20.0  # beyond it exp() would leave float32, where a policy has left the one that sampled


@dataclasses.dataclass(frozen=True)
class PolicyGradientObjective(Objective):
  """Sum over the tokens of answers of weight x the loss that `config.PolicyGradient` states; the weights are the
  batch's. `Loss.weight` is their sum, or counts the answers, as `aggregation` has it: all is exact over microbatches.
  `frozen` is not read: what the reference says of the answers is in the batch.

  Over answers there is no dropout: it would make the policy differ from the one that has sampled.
  Metrics: 'ratio', the mean over tokens, and 'ratio_max'; 'clipped_low' and 'clipped_high', shares of tokens; 'kl_old',
  k3 a token to the policy that has sampled; with a reference 'kl', k3 a token, and 'kl_k1', a sum over each answer.

  temperature: of the rollout.
  """
  config: PolicyGradient
  temperature: float = 1.0

  def __call__(self, params: Params, frozen: Any, batch: RolloutBatch, rng: jax.Array | None,
               statistics: Any = None) -> Loss:
    log_probs_BT = answer_log_probs(self.model, params, batch.text, self.temperature)
    is_answer_BT = batch.text.weights > 0
    old_BT = jax.lax.stop_gradient(log_probs_BT) if batch.old_log_probs is None else batch.old_log_probs
    log_ratio_BT = self.log_ratios(log_probs_BT - old_BT, is_answer_BT, batch.text.segment_ids)
    ratio_BT = jnp.exp(log_ratio_BT)
    loss_BT = self.surrogate(ratio_BT, batch.advantages, log_probs_BT)
    loss_BT += self.penalty(log_probs_BT, ratio_BT, batch)
    weights_BT = batch.text.weights
    num_answers = count_answers(is_answer_BT, batch.text.segment_ids)
    weight = weights_BT.sum() if self.config.aggregation == 'tokens' else num_answers
    metrics = self.metrics(log_probs_BT, old_BT, ratio_BT, batch, num_answers)
    loss = Loss((weights_BT * loss_BT).sum(), weight, metrics)
    return with_pretraining(loss, self.model, params, frozen, batch, rng)

  def log_ratios(self, log_ratio_BT: jax.Array, is_answer_BT: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
    """log r of each token: its own, or that of the answer it is in. They are 0 outside of answers."""
    match self.config.ratio:
      case 'sequence':
        log_ratio_BT = sums_of_answers(log_ratio_BT, segment_ids_BT)
      case 'sequence_mean':
        length_BT = jnp.maximum(sums_of_answers(is_answer_BT.astype(jnp.float32), segment_ids_BT), 1)
        log_ratio_BT = sums_of_answers(log_ratio_BT, segment_ids_BT) / length_BT
    return jnp.where(is_answer_BT, jnp.clip(log_ratio_BT, -MOST_LOG_RATIO, MOST_LOG_RATIO), 0)

  def surrogate(self, ratio_BT: jax.Array, advantages_BT: jax.Array, log_probs_BT: jax.Array) -> jax.Array:
    """What is minimised of the rewards, a token."""
    match self.config.clip:
      case Clip(low, high, most):
        clipped_BT = jnp.clip(ratio_BT, 1 - low, 1 + high)
        ratio_BT = ratio_BT if most is None else jnp.minimum(ratio_BT, most)
        return -jnp.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
      case ClipWeight(most):
        return -jax.lax.stop_gradient(jnp.minimum(ratio_BT, most)) * advantages_BT * log_probs_BT
      case None:
        return -ratio_BT * advantages_BT

  def penalty(self, log_probs_BT: jax.Array, ratio_BT: jax.Array, batch: RolloutBatch) -> jax.Array | float:
    """The weighted KL to the reference, a token, where it is in the loss."""
    kl = self.config.kl
    if not isinstance(kl, KLInLoss):
      return 0.0
    assert batch.reference_log_probs is not None
    difference_BT = log_probs_BT - batch.reference_log_probs
    kl_BT = difference_BT if kl.estimator == 'k1' else k3(difference_BT)
    return kl.weight * (kl_BT * ratio_BT if kl.corrected else kl_BT)

  def metrics(self, log_probs_BT: jax.Array, old_BT: jax.Array, ratio_BT: jax.Array, batch: RolloutBatch,
              num_answers: jax.Array) -> Metrics:
    is_answer_BT = batch.text.weights > 0
    num_tokens = is_answer_BT.sum().astype(jnp.float32)

    def mean(values_BT: jax.Array) -> Mean:
      return Mean(jnp.where(is_answer_BT, values_BT, 0).sum(), num_tokens)

    found = {
      'ratio': mean(ratio_BT),
      'ratio_max': Maximum(jnp.where(is_answer_BT, ratio_BT, 0).max()),
      'kl_old': mean(k3(log_probs_BT - old_BT)),
    }
    if isinstance(self.config.clip, Clip):
      is_low_BT = (ratio_BT < 1 - self.config.clip.low) & (batch.advantages < 0)
      is_high_BT = (ratio_BT > 1 + self.config.clip.high) & (batch.advantages > 0)
      found |= {'clipped_low': mean(is_low_BT), 'clipped_high': mean(is_high_BT)}
    if batch.reference_log_probs is not None:
      difference_BT = log_probs_BT - batch.reference_log_probs
      found |= {'kl': mean(k3(difference_BT)), 'kl_k1': Mean(difference_BT.sum(), num_answers)}
    return jax.lax.stop_gradient(found)


def sums_of_answers(values_BT: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
  """At each token the sum over the segment that it is in, [batch, time]."""
  def of_row(values_T: jax.Array, segment_ids_T: jax.Array) -> jax.Array:
    return jax.ops.segment_sum(values_T, segment_ids_T, num_segments=len(values_T) + 1)[segment_ids_T]
  return jax.vmap(of_row)(values_BT, segment_ids_BT)


def count_answers(is_answer_BT: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
  """How many answers there are, float32: segments with a token of an answer, of which there may be several runs."""
  def of_row(is_answer_T: jax.Array, segment_ids_T: jax.Array) -> jax.Array:
    places_T = jnp.arange(len(is_answer_T))
    found_T = jnp.where(is_answer_T, places_T, len(is_answer_T))
    first_T = jax.ops.segment_min(found_T, segment_ids_T, num_segments=len(is_answer_T) + 1)[segment_ids_T]
    return (is_answer_T & (places_T == first_T)).sum()
  return jax.vmap(of_row)(is_answer_BT, segment_ids_BT).sum().astype(jnp.float32)


def k3(difference: jax.Array) -> jax.Array:
  """exp(-d) - 1 + d of d = log p - log q: an estimate of KL(p, q) over samples of p that is never below 0 (Schulman
  2020)."""
  difference = jnp.clip(difference, -MOST_LOG_RATIO, MOST_LOG_RATIO)
  return jnp.expm1(-difference) + difference
