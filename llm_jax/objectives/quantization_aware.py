"""Any objective, learnt for weights that will be quantised."""
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax import paths
from llm_jax.config.data import Data
from llm_jax.config.quantization import QuantizationAware
from llm_jax.matrices import matrix_of
from llm_jax.modules.weight_storage import dense_layers, stored
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.loss import Loss, Params
from llm_jax.objectives.protocol import Objective


@dataclasses.dataclass(frozen=True)
class QuantizationAwareObjective(Objective):
  """`objective` of the weights as they will be stored, with a gradient for those that are trained: the one that the
  stored weights have, as if quantising changed nothing (the straight-through estimator)."""
  objective: Objective = dataclasses.field(kw_only=True)
  quantization: QuantizationAware = dataclasses.field(kw_only=True)

  @classmethod
  def of(cls, objective: Objective, quantization: QuantizationAware) -> 'QuantizationAwareObjective':
    return cls(objective.model, objective.config, objective.sources, objective=objective, quantization=quantization)

  def __call__(self, params: Params, frozen: Frozen, batch: Any, rng: jax.Array | None, statistics: Any = None) -> Loss:
    return self.objective(self.quantized(params), frozen, batch, rng, statistics)

  @property
  def has_statistics(self) -> bool:
    return self.objective.has_statistics

  def statistics(self, params: Params, frozen: Frozen, batch: Any, rng: jax.Array | None) -> Any:
    return self.objective.statistics(self.quantized(params), frozen, batch, rng)

  def after_step(self, params: Params, step_sums: Any) -> Params:
    return self.objective.after_step(params, step_sums)

  def init_parameters(self, data: Data, rng: jax.Array) -> Params:
    return self.objective.init_parameters(data, rng)

  def quantized(self, params: Params) -> Params:
    """The parameters with the matrices of the blocks rounded to what their stored form stands for."""
    return paths.nest({path: self._rounded(path, leaf) for path, leaf in paths.flat(params).items()})

  def _rounded(self, path: str, leaf: jax.Array) -> jax.Array:
    if matrix_of(path) is None:
      return leaf
    rounded = dense_layers(stored(path, leaf.astype(jnp.float32), self.quantization.weights), path)
    return leaf + jax.lax.stop_gradient(rounded.astype(leaf.dtype) - leaf)
