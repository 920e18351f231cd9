"""What every objective returns: sums, never means.

Shapes: B batch.
"""
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp

Params = dict[str, Any]
T = TypeVar('T')


@flax.struct.dataclass
class Mean:
  """Sums of a metric that counts something else than the loss does: reported is total / weight, and nothing where the
  weight is 0."""
  total: jax.Array   # float32 scalar
  weight: jax.Array  # float32 scalar


@flax.struct.dataclass
class Maximum:
  """A metric of which the largest value counts, not the sum.   value: float32 scalar, 0 or more."""
  value: jax.Array


Metrics = Mapping[str, jax.Array | Mean | Maximum]


@flax.struct.dataclass
class Loss:
  """The loss is total / weight, divided once by the step over all microbatches and devices, so that gradient
  accumulation and uneven masks are exact. Metrics are sums too, reported divided by the same weight where they have
  none of their own.

  An objective that moves parameters by itself, beside the optimizer, puts the sums that `after_step` needs into
  `step_sums`.
  """
  total: jax.Array   # float32 scalar, differentiated
  weight: jax.Array  # float32 scalar: what counts (tokens, pairs, ...)
  metrics: Metrics   # float32 scalars
  step_sums: dict[str, jax.Array] = flax.struct.field(default_factory=dict)  # float32


def sums_by_source(names: Sequence[str], sources_B: jax.Array | None, loss_B: jax.Array,
                   weight_B: jax.Array) -> dict[str, Mean]:
  """The metrics `loss/NAME`: of each source of a mixture, over its own rows. {} without names.

  names: of the sources that `sources_B` numbers.
  """
  means = {}
  for i, name in enumerate(names):
    is_mine_B = sources_B == i
    means[f'loss/{name}'] = Mean(jnp.where(is_mine_B, loss_B, 0).sum(), jnp.where(is_mine_B, weight_B, 0).sum())
  return jax.lax.stop_gradient(means)


def pair_cross_entropy(margin_B: jax.Array, probability_B: jax.Array | float) -> jax.Array:
  """The cross-entropy of pairs of which the first is the better one with a probability, float32 [batch].

  margin_B: by how much the first has the higher score, the logit of what the scores say.
  """
  as_labelled_B, as_not_labelled_B = -jax.nn.log_sigmoid(margin_B), -jax.nn.log_sigmoid(-margin_B)
  return probability_B * as_labelled_B + (1 - probability_B) * as_not_labelled_B


def divided(metrics: Metrics, weight: jax.Array) -> Metrics:
  """The metrics that have no weight of their own divided by `weight`."""
  return {name: sums if isinstance(sums, Mean | Maximum) else sums / weight for name, sums in metrics.items()}


def added(sums: T, more: T) -> T:
  """Two pytrees of sums as one, such as the losses of two microbatches; of a `Maximum` the larger."""
  def add(a: Any, b: Any) -> Any:
    return Maximum(jnp.maximum(a.value, b.value)) if isinstance(a, Maximum) else a + b
  return jax.tree.map(add, sums, more, is_leaf=lambda node: isinstance(node, Maximum))


def added_over(sums: T, axes: tuple[str, ...]) -> T:
  """The `added` of all devices along mesh axes; under `shard_map`, or without axes."""
  if not axes:
    return sums
  def add(a: Any) -> Any:
    return Maximum(jax.lax.pmax(a.value, axes)) if isinstance(a, Maximum) else jax.lax.psum(a, axes)
  return jax.tree.map(add, sums, is_leaf=lambda node: isinstance(node, Maximum))


def as_numbers(metrics: Metrics) -> dict[str, float]:
  """Metrics read from the device. A mean over nothing is left out."""
  numbers = {}
  for name, value in jax.device_get(metrics).items():
    if isinstance(value, Maximum):
      numbers[name] = value.value.item()
    elif not isinstance(value, Mean):
      numbers[name] = value.item()
    elif value.weight > 0:
      numbers[name] = value.total.item() / value.weight.item()
  return numbers
