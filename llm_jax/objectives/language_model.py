"""Next-token prediction."""
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax import paths
from llm_jax.batch import LanguageModelBatch
from llm_jax.config.model.architecture import MixtureOfExperts, SigmoidRouter
from llm_jax.modules.routing import Routing
from llm_jax.modules.transformer import Transformer, named_blocks
from llm_jax.objectives.cross_entropy import chunked_cross_entropy
from llm_jax.objectives.loss import Loss, Params, sums_by_source


@dataclasses.dataclass(frozen=True)
class LanguageModelObjective:
  """Sum over targets of weight x (-log p(target) + z_loss logsumexp^2); weight counts the targets.

  Added are the losses of each router, a mean over the tokens of a sequence times the sequence's targets, and
  multi_token_weight / D x the cross-entropies of D tokens further (DeepSeek-V3, equations 24 and 25: divided by all
  targets, of which a document's last ones have none so far ahead).

  With an rng, dropout is active. Metrics: nll (nats) and accuracy (argmax hits); multi_token_nll, the mean over depths;
  of routers, each a mean over layers: balance_loss and router_z unweighted, load_spread, the fullest expert's load over
  the mean (of a microbatch).
  sources: names of the mixture's sources, where there are several; the nll of each is a metric too.
  """
  model: Transformer
  z_loss: float = 0.0
  multi_token_weight: float = 0.3
  sources: tuple[str, ...] = ()

  def __call__(self, params: Params, frozen: Any, batch: LanguageModelBatch, rng: jax.Array | None) -> Loss:
    return self.of_features(params, batch, *self.features(params, batch, rng))

  def features(self, params: Params, batch: LanguageModelBatch, rng: jax.Array | None
               ) -> tuple[tuple[jax.Array, ...], dict[str, Routing]]:
    """`Transformer.features_ahead` of the batch."""
    rngs = {'dropout': rng} if rng is not None and self.model.config.dropout else {}
    return self.model.apply({'params': params}, batch.tokens, batch.positions, batch.segment_ids,
                            method='features_ahead', rngs=rngs)

  def of_features(self, params: Params, batch: LanguageModelBatch, features: tuple[jax.Array, ...],
                  routings: dict[str, Routing]) -> Loss:
    """The loss, where the batch's features are at hand."""
    cross_entropy = functools.partial(chunked_cross_entropy, kernels=self.model.execution.kernel_set,
                                      soft_cap=self.model.config.logit_soft_cap)
    w_VD = self.model.head_weight(params)
    weight_B = batch.weights.sum(1)
    total, sums = cross_entropy(features[0], w_VD, batch.targets, batch.weights, z_loss=self.z_loss,
                                per_row=bool(self.sources))
    metrics = {'nll': sums['nll'], 'accuracy': sums['correct'],
               **sums_by_source(self.sources, batch.sources, sums.get('nll_B'), weight_B)}

    for k, x_BTD in enumerate(features[1:], 1):
      further, sums = cross_entropy(x_BTD, w_VD, *targets_ahead(batch, k))
      total += self.multi_token_weight / len(features[1:]) * further
      metrics['multi_token_nll'] = metrics.get('multi_token_nll', 0) + sums['nll'] / len(features[1:])
    if routings:
      total += sum((routing.loss_B * weight_B).sum() for routing in routings.values())
      metrics |= jax.lax.stop_gradient(routing_metrics(routings, weight_B))
    loads = {bias_path(path): routings[path].load_E for path in balanced_blocks(self.model)}
    return Loss(total, batch.weights.sum(), metrics, jax.lax.stop_gradient(loads))

  def after_step(self, params: Params, loads: dict[str, jax.Array]) -> Params:
    """Moves each balance bias against the load of its expert in this step: bias + bias_rate x sign(mean load - load)
    (DeepSeek-V3, section 2.1.2; Wang et al. 2024, Auxiliary-Loss-Free Load Balancing, algorithm 1)."""
    rates = {bias_path(path): router.bias_rate for path, router in balanced_blocks(self.model).items()}

    def move(path: str, leaf: jax.Array) -> jax.Array:
      if path not in rates:
        return leaf
      load_E = loads[path]
      return leaf + rates[path] * jnp.sign(load_E.mean(-1, keepdims=True) - load_E)
    return paths.map_named(move, params) if rates else params


def targets_ahead(batch: LanguageModelBatch, k: int) -> tuple[jax.Array, jax.Array]:
  """Targets and weights `k` tokens further on; without weight where that is beyond the document or the row."""
  shift = lambda x: jnp.roll(x, -k, axis=1)
  T = batch.tokens.shape[1]
  inside = (shift(batch.segment_ids) == batch.segment_ids) & (jnp.arange(T) < T - k)
  return shift(batch.targets), shift(batch.weights) * inside


def balanced_blocks(model: Transformer) -> dict[str, SigmoidRouter]:
  """The routers that have a balance bias, by the path of their block."""
  routed = {path: block.feed_forward.router for path, block in named_blocks(model.config).items()
            if isinstance(block.feed_forward, MixtureOfExperts)}
  return {path: router for path, router in routed.items() if isinstance(router, SigmoidRouter)}


def bias_path(block: str) -> str:
  return f'{block}/feed_forward/balance/bias'


def routing_metrics(routings: dict[str, Routing], weight_B: jax.Array) -> dict[str, jax.Array]:
  """Sums over targets, each a mean over layers."""
  def mean(value):  # value: one number for each layer, or for each layer and sequence
    layers = [jnp.atleast_1d(value(routing)) for routing in routings.values()]
    return jnp.concatenate(layers).mean()
  spread = lambda load_E: load_E.max(-1) / jnp.maximum(load_E.mean(-1), 1e-9)
  return {'balance_loss': mean(lambda r: (r.balance_B * weight_B).sum(-1)),
          'router_z': mean(lambda r: (r.z_B * weight_B).sum(-1)),
          'load_spread': mean(lambda r: spread(r.load_E)) * weight_B.sum()}
