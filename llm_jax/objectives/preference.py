"""Learning from pairs of answers: DPO and its relatives."""
import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.batch import LanguageModelBatch, PreferenceBatch
from llm_jax.config.preferences import DPO, IPO, ORPO, APODown, APOZero, PreferenceConfig, SimPO, SLiC
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.log_probs import sequence_log_probs
from llm_jax.objectives.loss import Loss, Params, pair_cross_entropy, sums_by_source
from llm_jax.objectives.protocol import Objective


class Answers(NamedTuple):
  """One side of the pairs, float32 [batch].

  log_prob: of the answer's targets under the policy; mean_log_prob: a target.
  num_targets: how many these are, 1 where there is none.
  log_ratio: log_prob less that under the reference; None where the objective has no reference.
  """
  log_prob: jax.Array
  mean_log_prob: jax.Array
  num_targets: jax.Array
  log_ratio: jax.Array | None

  def mean_log_ratio(self) -> jax.Array:
    """`log_ratio` a target; of objectives with a reference."""
    if self.log_ratio is None:
      raise ValueError('the objective has no reference')
    return self.log_ratio / self.num_targets


@dataclasses.dataclass(frozen=True)
class PreferenceObjective(Objective):
  """Sum over pairs of `pair_loss`; weight counts the pairs.

  There is no dropout, which would make policy and reference differ where they are the same (as in TRL).
  Rows whose answers have no target (padding of the last validation batch) do not count.
  Metrics, as in TRL: 'reward_chosen' and 'reward_rejected' (see `reward`), 'reward_margin', 'accuracy' (the margin is
  above 0), 'nll' (of the chosen answer a token).
  """
  config: PreferenceConfig

  @abc.abstractmethod
  def pair_loss(self, chosen: Answers, rejected: Answers, probability: jax.Array | float) -> jax.Array:
    """float32 [batch], differentiable.

    probability: that the chosen answer is the better one; 1 for objectives that read no soft labels.
    """

  def reward(self, answers: Answers) -> jax.Array:
    """beta x log-ratio to the reference; without one, beta x the mean log-probability. float32 [batch]."""
    score = answers.mean_log_prob if answers.log_ratio is None else answers.log_ratio
    return self.config.beta * score

  def __call__(self, params: Params, frozen: Frozen, batch: PreferenceBatch, rng: jax.Array | None,
               statistics: Any = None) -> Loss:
    chosen, rejected = self.score(params, frozen, batch)
    loss = self.pair_loss(chosen, rejected, 1.0 if batch.soft_labels is None else batch.soft_labels)
    reward_chosen, reward_rejected = self.reward(chosen), self.reward(rejected)
    is_pair = batch.rejected.weights.sum(-1) > 0

    def count(per_pair: jax.Array) -> jax.Array:
      return jnp.where(is_pair, per_pair, 0)  # the log odds of padding are not a number

    per_pair = {
      'reward_chosen': reward_chosen,
      'reward_rejected': reward_rejected,
      'reward_margin': reward_chosen - reward_rejected,
      'accuracy': (reward_chosen > reward_rejected).astype(jnp.float32),
      'nll': -chosen.mean_log_prob,
    }
    metrics = jax.lax.stop_gradient({name: count(value).sum() for name, value in per_pair.items()})
    weight = is_pair.astype(jnp.float32)
    metrics |= sums_by_source(self.sources, batch.sources, count(loss), weight)
    return Loss(count(loss).sum(), weight.sum(), metrics)

  def score(self, params: Params, frozen: Frozen, batch: PreferenceBatch) -> tuple[Answers, Answers]:
    """(chosen, rejected), both sides in one forward pass of each model."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch.chosen, batch.rejected)
    policy = jnp.split(sequence_log_probs(self.model, params, both), 2)
    if not self.config.has_reference:
      return _answers(policy[0], None, batch.chosen), _answers(policy[1], None, batch.rejected)
    reference = jnp.split(sequence_log_probs(self.model, jax.lax.stop_gradient(frozen.reference), both), 2)
    return _answers(policy[0], reference[0], batch.chosen), _answers(policy[1], reference[1], batch.rejected)


def _answers(policy: jax.Array, reference: jax.Array | None, side: LanguageModelBatch) -> Answers:
  num_targets = jnp.maximum(side.weights.sum(-1), 1)
  log_ratio = None if reference is None else policy - reference
  return Answers(policy, policy / num_targets, num_targets, log_ratio)


# ---------------------------------------------------------------------------------------------- the losses
@dataclasses.dataclass(frozen=True)
class DPOObjective(PreferenceObjective):
  config: DPO

  def pair_loss(self, chosen: Answers, rejected: Answers, probability: jax.Array | float) -> jax.Array:
    margin = self.reward(chosen) - self.reward(rejected)
    wrong = self.config.label_smoothing
    probability = (1 - wrong) * probability + wrong * (1 - probability)
    return pair_cross_entropy(margin, probability) - self.config.nll_weight * chosen.mean_log_prob


@dataclasses.dataclass(frozen=True)
class IPOObjective(PreferenceObjective):
  config: IPO

  def pair_loss(self, chosen: Answers, rejected: Answers, probability: jax.Array | float) -> jax.Array:
    return jnp.square(chosen.mean_log_ratio() - rejected.mean_log_ratio() - 1 / (2 * self.config.beta))


@dataclasses.dataclass(frozen=True)
class SLiCObjective(PreferenceObjective):
  config: SLiC

  def pair_loss(self, chosen: Answers, rejected: Answers, probability: jax.Array | float) -> jax.Array:
    return jax.nn.relu(1 - (self.reward(chosen) - self.reward(rejected)))


@dataclasses.dataclass(frozen=True)
class APOZeroObjective(PreferenceObjective):
  config: APOZero

  def pair_loss(self, chosen: Answers, rejected: Answers, probability: jax.Array | float) -> jax.Array:
    return 1 - jax.nn.sigmoid(self.reward(chosen)) + jax.nn.sigmoid(self.reward(rejected))


@dataclasses.dataclass(frozen=True)
class APODownObjective(PreferenceObjective):
  config: APODown

  def pair_loss(self, chosen: Answers, rejected: Answers, probability: jax.Array | float) -> jax.Array:
    margin = self.reward(chosen) - self.reward(rejected)
    return jax.nn.sigmoid(self.reward(chosen)) + 1 - jax.nn.sigmoid(margin)


@dataclasses.dataclass(frozen=True)
class ORPOObjective(PreferenceObjective):
  config: ORPO

  def pair_loss(self, chosen: Answers, rejected: Answers, probability: jax.Array | float) -> jax.Array:
    p_chosen, p_rejected = chosen.mean_log_prob, rejected.mean_log_prob
    log_odds_ratio = (p_chosen - p_rejected) - (_log1mexp(p_chosen) - _log1mexp(p_rejected))
    return -p_chosen - self.config.beta * jax.nn.log_sigmoid(log_odds_ratio)


@dataclasses.dataclass(frozen=True)
class SimPOObjective(PreferenceObjective):
  config: SimPO

  def pair_loss(self, chosen: Answers, rejected: Answers, probability: jax.Array | float) -> jax.Array:
    return -jax.nn.log_sigmoid(self.reward(chosen) - self.reward(rejected) - self.config.gamma)


def _log1mexp(x: jax.Array) -> jax.Array:
  """log(1 - exp(x)) for x < 0; finite, and without gradient, where x is 0 to rounding."""
  return jnp.log(-jnp.expm1(jnp.minimum(x, -jnp.finfo(x.dtype).eps)))
