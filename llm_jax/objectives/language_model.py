"""Next-token prediction.

Shapes: B batch, T time, D model width, V vocabulary, E experts, I layers.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax import paths
from llm_jax.batch import LanguageModelBatch
from llm_jax.config.model.architecture import MixtureOfExperts, SigmoidRouter, SoftmaxRouter
from llm_jax.config.objectives import LanguageModel
from llm_jax.modules.low_rank import has_dropout
from llm_jax.modules.routing import Routing, balance_of_counts
from llm_jax.modules.transformer import Transformer, named_blocks
from llm_jax.objectives.cross_entropy import chunked_cross_entropy
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.loss import Loss, Params, sums_by_source
from llm_jax.objectives.protocol import Objective


@flax.struct.dataclass
class BalanceStatistics:
  """How the routers used their experts.

  load_E, count: by the path of a block, as `Routing` has them.   weight: targets.
  """
  load_E: dict[str, jax.Array]
  count: dict[str, jax.Array]
  weight: jax.Array

  @classmethod
  def of(cls, routings: dict[str, Routing], weight: jax.Array) -> 'BalanceStatistics':
    loads = {path: routing.load_E for path, routing in routings.items()}
    counts = {path: routing.count for path, routing in routings.items()}
    return cls(loads, counts, weight)


@dataclasses.dataclass(frozen=True)
class LanguageModelObjective(Objective):
  """Sum over targets of weight x (-log p(target) + z_loss logsumexp^2); weight counts the targets.

  Added are the losses of each router, a mean over the tokens of a sequence times the sequence's targets, and
  multi_token_weight / D x the cross-entropies of D tokens further (DeepSeek-V3, equations 24 and 25: divided by all
  targets, of which a document's last ones have none so far ahead).

  With an rng, dropout is active. Metrics: nll (nats) and accuracy (argmax hits); multi_token_nll, the mean over depths;
  of routers, each a mean over layers: balance_loss and router_z unweighted, load_spread, the fullest expert's load over
  the mean (of a microbatch; of its part that a replica computes, where replicas sum apart).
  """
  config: LanguageModel = LanguageModel()

  def __call__(self, params: Params, frozen: Frozen, batch: LanguageModelBatch, rng: jax.Array | None,
               statistics: Any = None) -> Loss:
    features, routings = self.features(params, batch, rng)
    return self.of_features(params, batch, features, routings, statistics)

  @property
  def has_statistics(self) -> bool:
    routers = [router for router, _ in shared_balances(self.model)]
    return any(router.balance_over == 'step' for router in routers)

  def statistics(self, params: Params, frozen: Frozen, batch: LanguageModelBatch, rng: jax.Array | None
                 ) -> BalanceStatistics:
    """What the balance losses over a step need of all that it learns from."""
    _, routings = self.features(params, batch, rng)
    return jax.lax.stop_gradient(BalanceStatistics.of(routings, batch.weights.sum()))

  def features(self, params: Params, batch: LanguageModelBatch, rng: jax.Array | None
               ) -> tuple[tuple[jax.Array, ...], dict[str, Routing]]:
    """`Transformer.features_ahead` of the batch."""
    drops = self.model.config.dropout or has_dropout(params)
    rngs: Any = {'dropout': rng} if rng is not None and drops else {}
    found: Any = self.model.apply({'params': params}, batch.tokens, batch.positions, batch.segment_ids,
                                  method='features_ahead', rngs=rngs)
    return found

  def of_features(self, params: Params, batch: LanguageModelBatch, features: tuple[jax.Array, ...],
                  routings: dict[str, Routing], statistics: BalanceStatistics | None = None) -> Loss:
    """The loss, where the batch's features are at hand."""
    cross_entropy = functools.partial(chunked_cross_entropy, kernels=self.model.execution.kernel_set,
                                      soft_cap=self.model.config.logit_soft_cap)
    w_VD = self.model.head_weight(params)
    weight_B = batch.weights.sum(1)
    total, sums = cross_entropy(features[0], w_VD, batch.targets, batch.weights, z_loss=self.config.z_loss,
                                per_row=bool(self.sources))
    metrics = {'nll': sums['nll'], 'accuracy': sums['correct']}
    if self.sources:
      metrics |= sums_by_source(self.sources, batch.sources, sums['nll_B'], weight_B)

    depths = features[1:]
    nll_ahead = jnp.zeros(())
    for k, x_BTD in enumerate(depths, 1):
      targets, weights = targets_ahead(batch, k)
      ahead, sums = cross_entropy(x_BTD, w_VD, targets, weights)
      total += self.config.multi_token_weight / len(depths) * ahead
      nll_ahead += sums['nll'] / len(depths)
    if depths:
      metrics['multi_token_nll'] = nll_ahead

    if routings:
      total += sum((routing.loss_B * weight_B).sum() for routing in routings.values())
      total += self.shared_balance(routings, weight_B.sum(), statistics)
      metrics |= jax.lax.stop_gradient(routing_metrics(routings, weight_B))
    loads = {bias_path(path): routings[path].load_E for path in balanced_blocks(self.model)}
    return Loss(total, batch.weights.sum(), metrics, jax.lax.stop_gradient(loads))

  def shared_balance(self, routings: dict[str, Routing], weight: jax.Array, statistics: BalanceStatistics | None
                     ) -> jax.Array:
    """The weighted balance losses of routers that do not balance alone, times the number of targets.

    Where layers balance together, it is one loss over the tokens of all of them (`load_balancing_loss_func` of
    transformers). Over a step, it is the part of the loss that this microbatch's scores make with the loads of all:
    the loss is linear in the scores, so that the parts add up to that of the whole step.

    weight: targets of this microbatch.   statistics: those of the step; None: the microbatch is all of it.
    """
    total = jnp.zeros(())
    of_batch = BalanceStatistics.of(routings, weight)
    for (router, _), group in shared_balances(self.model).items():
      used = of_batch if statistics is None or router.balance_over == 'microbatch' else statistics
      load_IE = jnp.concatenate([jnp.atleast_2d(used.load_E[path]) for path in group])
      score_IE = jnp.concatenate([jnp.atleast_2d(routings[path].score_E) for path in group])
      count_I = jnp.concatenate([jnp.atleast_1d(used.count[path]) for path in group])
      if router.layers_together:
        load_IE, score_IE, count_I = (sums.sum(0, keepdims=True) for sums in (load_IE, score_IE, count_I))
      balance_I = jax.vmap(balance_of_counts)(load_IE, score_IE, count_I)
      total += router.balance_weight * balance_I.sum() * used.weight
    return total

  def after_step(self, params: Params, step_sums: dict[str, jax.Array]) -> Params:
    """Moves each balance bias against the load of its expert in this step: bias + bias_rate x sign(mean load - load)
    (DeepSeek-V3, section 2.1.2; Wang et al. 2024, Auxiliary-Loss-Free Load Balancing, algorithm 1)."""
    rates = {bias_path(path): router.bias_rate for path, router in balanced_blocks(self.model).items()}

    def move(path: str, leaf: jax.Array) -> jax.Array:
      if path not in rates:
        return leaf
      load_E = step_sums[path]
      return leaf + rates[path] * jnp.sign(load_E.mean(-1, keepdims=True) - load_E)
    return paths.map_named(move, params) if rates else params


def targets_ahead(batch: LanguageModelBatch, k: int) -> tuple[jax.Array, jax.Array]:
  """Targets and weights `k` tokens further on; without weight where that is beyond the document or the row."""
  shift = lambda x: jnp.roll(x, -k, axis=1)
  T = batch.tokens.shape[1]
  is_inside = (shift(batch.segment_ids) == batch.segment_ids) & (jnp.arange(T) < T - k)
  return shift(batch.targets), shift(batch.weights) * is_inside


def balanced_blocks(model: Transformer) -> dict[str, SigmoidRouter]:
  """The routers that have a balance bias, by the path of their block."""
  found = {}
  for path, block in named_blocks(model.config).items():
    layer = block.feed_forward
    if isinstance(layer, MixtureOfExperts) and isinstance(layer.router, SigmoidRouter):
      found[path] = layer.router
  return found


def shared_balances(model: Transformer) -> dict[tuple[SoftmaxRouter, int], list[str]]:
  """The paths of the blocks whose softmax routers do not balance alone, by router and number of experts."""
  found: dict[tuple[SoftmaxRouter, int], list[str]] = {}
  for path, block in named_blocks(model.config).items():
    layer = block.feed_forward
    if not isinstance(layer, MixtureOfExperts) or not isinstance(layer.router, SoftmaxRouter):
      continue
    if not layer.router.balances_alone:
      found.setdefault((layer.router, layer.num_experts), []).append(path)
  return found


def bias_path(block: str) -> str:
  return f'{block}/feed_forward/balance/bias'


def routing_metrics(routings: dict[str, Routing], weight_B: jax.Array) -> dict[str, jax.Array]:
  """Sums over targets, each a mean over layers."""

  def mean_over_layers(value: Callable[[Routing], jax.Array]) -> jax.Array:
    """value: of a routing, one number, or one for each layer of a scan."""
    layers = [jnp.atleast_1d(value(routing)) for routing in routings.values()]
    return jnp.concatenate(layers).mean()

  def spread(routing: Routing) -> jax.Array:
    mean_load = jnp.maximum(routing.load_E.mean(-1), 1e-9)
    return routing.load_E.max(-1) / mean_load

  return {
    'balance_loss': mean_over_layers(lambda routing: (routing.balance_B * weight_B).sum(-1)),
    'router_z': mean_over_layers(lambda routing: (routing.z_B * weight_B).sum(-1)),
    'load_spread': mean_over_layers(spread) * weight_B.sum(),
  }
