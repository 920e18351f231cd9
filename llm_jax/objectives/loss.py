"""What every objective returns: sums, never means."""
from collections.abc import Callable
from typing import Any

import flax.struct
import jax

Params = dict[str, Any]


@flax.struct.dataclass
class Loss:
  """The loss is total / weight, divided once by the step over all microbatches and devices, so that gradient
  accumulation and uneven masks are exact. Metrics are sums too, reported divided by the same weight.

  An objective that moves parameters by itself, beside the optimizer, puts the sums that it needs into `loads` and has
  a method `after_step(params, loads) -> params`, called once a step with the sums over all microbatches and devices.
  """
  total: jax.Array                # float32 scalar, differentiated
  weight: jax.Array               # float32 scalar: what counts (tokens, pairs, ...)
  metrics: dict[str, jax.Array]   # float32 scalars
  loads: dict[str, jax.Array] = flax.struct.field(default_factory=dict)  # by the path of the parameter that they move


# Objective(params, frozen, batch, rng) -> Loss. `frozen` holds parameter trees that are read but never trained.
Objective = Callable[[Params, Any, Any, jax.Array | None], Loss]
