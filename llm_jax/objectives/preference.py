"""Learning from pairs of answers: DPO and its relatives."""
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.batch import PreferenceBatch
from llm_jax.config import objectives as config
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.log_probs import sequence_log_probs
from llm_jax.objectives.loss import Loss, Params, sums_by_source


@dataclasses.dataclass(frozen=True)
class PreferenceObjective:
  """Sum over pairs of the loss that `form` names; weight counts the pairs. `frozen` holds the reference's parameters,
  or None where the form has no reference.

  There is no dropout, which would make policy and reference differ where they are the same (as in TRL).
  Rows whose answers have no target (padding of the last held-out batch) do not count.
  Metrics, as in TRL: 'reward_chosen' and 'reward_rejected' (beta x log-ratio to the reference; without one, beta x
  the mean log-probability), 'reward_margin', 'accuracy' (the margin is above 0), 'nll' (of the chosen answer a token).
  sources: names of the mixture's sources, where there are several; the loss of each is a metric too.
  """
  model: Transformer
  form: config.Preference
  sources: tuple[str, ...] = ()

  def __call__(self, params: Params, frozen: Any, batch: PreferenceBatch, rng: jax.Array | None) -> Loss:
    form, chosen, rejected = self.form, batch.chosen, batch.rejected
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), chosen, rejected)
    policy = jnp.split(sequence_log_probs(self.model, params, both), 2)
    tokens = [jnp.maximum(side.weights.sum(-1), 1) for side in (chosen, rejected)]
    mean = [p / n for p, n in zip(policy, tokens, strict=True)]
    nll = -mean[0]
    if isinstance(form, config.Referenced):
      reference = jnp.split(sequence_log_probs(self.model, jax.lax.stop_gradient(frozen), both), 2)
      ratio = [p - q for p, q in zip(policy, reference, strict=True)]
    match form:
      case config.DPO():
        rewards = [form.beta * r for r in ratio]
        margin, noise = rewards[0] - rewards[1], form.label_smoothing
        loss = -(1 - noise) * jax.nn.log_sigmoid(margin) - noise * jax.nn.log_sigmoid(-margin) + form.nll_weight * nll
      case config.IPO():
        rewards = [form.beta * r for r in ratio]
        loss = jnp.square(ratio[0] / tokens[0] - ratio[1] / tokens[1] - 1 / (2 * form.beta))
      case config.SLiC():
        rewards = [form.beta * r for r in ratio]
        loss = jax.nn.relu(1 - (rewards[0] - rewards[1]))
      case config.ORPO():
        rewards = [form.beta * m for m in mean]
        log_odds = (mean[0] - mean[1]) - (_log1mexp(mean[0]) - _log1mexp(mean[1]))
        loss = nll - form.beta * jax.nn.log_sigmoid(log_odds)
      case config.SimPO():
        rewards = [form.beta * m for m in mean]
        loss = -jax.nn.log_sigmoid(rewards[0] - rewards[1] - form.gamma)
    real = (rejected.weights.sum(-1) > 0).astype(jnp.float32)
    sums = {'reward_chosen': rewards[0], 'reward_rejected': rewards[1], 'reward_margin': rewards[0] - rewards[1],
            'accuracy': (rewards[0] > rewards[1]).astype(jnp.float32), 'nll': nll}
    counted = lambda per_pair: jnp.where(real > 0, per_pair, 0)  # padding's log odds are not a number
    metrics = jax.lax.stop_gradient({name: counted(x).sum() for name, x in sums.items()})
    metrics |= sums_by_source(self.sources, batch.sources, counted(loss), real)
    return Loss(counted(loss).sum(), real.sum(), metrics)


def _log1mexp(x: jax.Array) -> jax.Array:
  """log(1 - exp(x)) for x < 0; finite, and without gradient, where x is 0 to rounding."""
  return jnp.log(-jnp.expm1(jnp.minimum(x, -jnp.finfo(x.dtype).eps)))
