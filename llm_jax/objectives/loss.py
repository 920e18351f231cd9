"""What every objective returns: sums, never means.

Shapes: B batch.
"""
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

Params = dict[str, Any]


@flax.struct.dataclass
class Loss:
  """The loss is total / weight, divided once by the step over all microbatches and devices, so that gradient
  accumulation and uneven masks are exact. Metrics are sums too, reported divided by the same weight.

  An objective that moves parameters by itself, beside the optimizer, puts the sums that `after_step` needs into
  `step_sums`.
  """
  total: jax.Array                # float32 scalar, differentiated
  weight: jax.Array               # float32 scalar: what counts (tokens, pairs, ...)
  metrics: dict[str, jax.Array]   # float32 scalars
  step_sums: dict[str, jax.Array] = flax.struct.field(default_factory=dict)  # float32


def sums_by_source(names: Sequence[str], sources_B: jax.Array | None, loss_B: jax.Array,
                   weight_B: jax.Array) -> dict[str, jax.Array]:
  """Metrics of the sources of a mixture, sums over the rows of each: `loss/NAME` and `weight/NAME`. {} without names.

  names: of the sources that `sources_B` numbers.
  """
  sums = {}
  for i, name in enumerate(names):
    is_mine_B = sources_B == i
    sums[f'loss/{name}'] = jnp.where(is_mine_B, loss_B, 0).sum()
    sums[f'weight/{name}'] = jnp.where(is_mine_B, weight_B, 0).sum()
  return jax.lax.stop_gradient(sums)


def means_by_source(numbers: dict[str, float]) -> dict[str, float]:
  """Metrics, of which `loss/NAME` becomes the mean over the source's own weight; a source without any is left out."""
  means = {name: value for name, value in numbers.items() if not name.startswith(('loss/', 'weight/'))}
  for name, value in numbers.items():
    kind, _, source = name.partition('/')
    if kind == 'loss' and source and numbers[f'weight/{source}'] > 0:
      means[name] = value / numbers[f'weight/{source}']
  return means
