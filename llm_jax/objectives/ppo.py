"""Proximal policy optimisation over answers that the model has sampled itself (Schulman et al. 2017; Ouyang et al.
2022, InstructGPT), with a critic that says what an answer is worth while it is written.

Shapes: B batch, T time, D model width, V vocabulary.
"""
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from llm_jax.batch import LanguageModelBatch, RolloutBatch
from llm_jax.config.data import Data
from llm_jax.config.policy_gradients import PPO
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.log_probs import tempered_head, token_log_probs
from llm_jax.objectives.loss import Loss, Maximum, Mean, Params
from llm_jax.objectives.policy_gradient import MOST_LOG_RATIO, count_answers, k3
from llm_jax.objectives.pretraining_loss import with_pretraining
from llm_jax.objectives.protocol import Objective
from llm_jax.objectives.scalar_head import VALUE, apply_scalar_head, init_scalar_head

CRITIC = 'critic'  # the place of a critic of its own in the tree of parameters: a decoder with a head `value`


@dataclasses.dataclass(frozen=True)
class PPOObjective(Objective):
  """Sum over the tokens of answers of the loss that `config.PPO` states; weight counts the tokens.

  Parameters are the policy's, and the critic's: under `value` a head on the policy's own features, or under `critic` a
  decoder with a head. `frozen` is not read: what the reference says of the answers is in the batch.
  Over answers there is no dropout, which would make the policy differ from the one that has sampled.
  Metrics: 'policy_loss', 'value_loss' (half the squared error), 'value_clipped', the share of tokens whose error is
  that of the clipped value; 'ratio', 'ratio_max', 'clipped_low', 'clipped_high' and 'kl_old' as
  `PolicyGradientObjective` has them, and with a reference 'kl' and 'kl_k1'.

  temperature: of the rollout.
  """
  config: PPO
  temperature: float = 1.0
  own_parameters: ClassVar[tuple[str, ...]] = (VALUE,)

  def __call__(self, params: Params, frozen: Frozen, batch: RolloutBatch, rng: jax.Array | None,
               statistics: None = None) -> Loss:
    assert batch.old_log_probs is not None and batch.values is not None and batch.returns is not None
    log_probs_BT, values_BT = self.log_probs_and_values(params, batch.text)
    is_answer_BT = batch.text.weights > 0
    clip = self.config.clip
    log_ratio_BT = jnp.clip(log_probs_BT - batch.old_log_probs, -MOST_LOG_RATIO, MOST_LOG_RATIO)
    ratio_BT = jnp.exp(jnp.where(is_answer_BT, log_ratio_BT, 0))
    clipped_BT = jnp.clip(ratio_BT, 1 - clip.low, 1 + clip.high)
    policy_loss_BT = -jnp.minimum(ratio_BT * batch.advantages, clipped_BT * batch.advantages)

    error_BT = jnp.square(values_BT - batch.returns)
    near_BT = batch.values + jnp.clip(values_BT - batch.values, -self.config.value_clip, self.config.value_clip)
    clipped_error_BT = jnp.square(near_BT - batch.returns)
    value_loss_BT = jnp.maximum(error_BT, clipped_error_BT) / 2

    loss_BT = policy_loss_BT + self.config.value_weight * value_loss_BT
    weights_BT = batch.text.weights
    num_tokens = weights_BT.sum()

    def mean(found_BT: jax.Array) -> Mean:
      return Mean((weights_BT * found_BT).sum(), num_tokens)

    metrics = {
      'policy_loss': mean(policy_loss_BT),
      'value_loss': mean(value_loss_BT),
      'value_clipped': mean(clipped_error_BT > error_BT),
      'ratio': mean(ratio_BT),
      'ratio_max': Maximum(jnp.where(is_answer_BT, ratio_BT, 0).max()),
      'clipped_low': mean((ratio_BT < 1 - clip.low) & (batch.advantages < 0)),
      'clipped_high': mean((ratio_BT > 1 + clip.high) & (batch.advantages > 0)),
      'kl_old': mean(k3(log_probs_BT - batch.old_log_probs)),
    }
    if batch.reference_log_probs is not None:
      difference_BT = log_probs_BT - batch.reference_log_probs
      num_answers = count_answers(is_answer_BT, batch.text.segment_ids)
      metrics |= {'kl': mean(k3(difference_BT)), 'kl_k1': Mean((is_answer_BT * difference_BT).sum(), num_answers)}
    loss = Loss((weights_BT * loss_BT).sum(), num_tokens, jax.lax.stop_gradient(metrics))
    return with_pretraining(loss, self.model, params, frozen, batch, rng)

  def log_probs_and_values(self, params: Params, text: LanguageModelBatch) -> tuple[jax.Array, jax.Array]:
    """Of each target its log-probability, and what the answer is worth before it, float32 [batch, time]; 0 where the
    target has no weight."""
    x_BTD = features(self.model, params, text)
    w_VD, soft_cap = tempered_head(self.model, params, self.temperature)
    log_probs_BT = token_log_probs(x_BTD, w_VD, text.targets, soft_cap=soft_cap,
                                   kernels=self.model.execution.kernel_set)
    is_answer_BT = text.weights > 0
    return jnp.where(is_answer_BT, log_probs_BT, 0), self.values(params, text, x_BTD)

  def values(self, params: Params, text: LanguageModelBatch, x_BTD: jax.Array | None = None) -> jax.Array:
    """What an answer is worth before each target, float32 [batch, time]; 0 where the target has no weight.

    x_BTD: the policy's features, where they are at hand.
    """
    x_BTD = features(self.model, params, text) if x_BTD is None else x_BTD
    return jnp.where(text.weights > 0, apply_scalar_head(self.model, params[VALUE], x_BTD), 0)

  def init_parameters(self, data: Data, rng: jax.Array) -> Params:
    return {VALUE: init_scalar_head(self.model.config, rng)}


@dataclasses.dataclass(frozen=True)
class PPOWithCriticObjective(PPOObjective):
  """`PPOObjective` whose critic is a decoder of its own, which starts as the policy does, with a fresh head."""
  own_parameters: ClassVar[tuple[str, ...]] = (CRITIC,)

  def values(self, params: Params, text: LanguageModelBatch, x_BTD: jax.Array | None = None) -> jax.Array:
    return super().values(params[CRITIC], text)

  def init_parameters(self, data: Data, rng: jax.Array) -> Params:
    decoder: Any = self.model.init(rng, jnp.zeros((1, 1), jnp.int32))
    return {CRITIC: {**decoder['params'], **super().init_parameters(data, jax.random.fold_in(rng, 1))}}

  def start_parameters(self, fresh: Params, params: Params) -> Params:
    return {CRITIC: {**jax.tree.map(jnp.copy, params), VALUE: fresh[CRITIC][VALUE]}}


def features(model: Transformer, params: Params, text: LanguageModelBatch) -> jax.Array:
  """The decoder's last hidden states, without dropout, [batch, time, d_model]."""
  found: Any = model.apply({'params': params}, text.tokens, text.positions, text.segment_ids, method='features')
  return found
