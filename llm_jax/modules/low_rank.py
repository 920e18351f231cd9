"""Low-rank adapters: what is trained in the place of a matrix, beside which it stands in the tree of parameters.

`query: {w, b}` of a model becomes `query: {w, b, adapter}`, where `adapter` is an `Adapter`; the layers apply it. What
is trained, saved and averaged is a tree of arrays alone, `query: {lora_a, lora_b}`: see `join`.
"""
import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from llm_jax import paths
from llm_jax.config.adapters import LoRA
from llm_jax.matrices import matrix_of, split_shape
from llm_jax.modules.kernels.linear import linear
from llm_jax.modules.weight_storage import dense_layers, full_shape

A, B, MAGNITUDE = 'lora_a', 'lora_b', 'lora_magnitude'


@flax.struct.dataclass
class Adapter:
  """Changes a matrix w [*inputs, *outputs] to w + scale x a b; with a magnitude, to that sum with columns of this
  length (Liu et al. 2024, DoRA, equation 5).

  a: [*inputs, rank].   b: [rank, *outputs].   magnitude: [*outputs], or None.   Experts have their axis in front.
  scale: float.   dropout: rate at which entries of a's input are dropped.
  """
  a: jax.Array
  b: jax.Array
  magnitude: jax.Array | None
  scale: float = flax.struct.field(pytree_node=False)
  dropout: float = flax.struct.field(pytree_node=False, default=0.0)

  def apply(self, x: jax.Array, y: jax.Array, w: jax.Array, contract: int, kernels: str, rng: jax.Array | None
            ) -> jax.Array:
    """What the changed matrix makes of x, where y is what w makes of it.

    Args:
      x: [..., *inputs].   y: [..., *outputs].   w: [*inputs, *outputs].   contract: how many axes the inputs have.
      rng: of dropout; None: there is none.
    """
    if self.dropout and rng is not None:
      kept = jax.random.bernoulli(rng, 1 - self.dropout, x.shape)
      x = jnp.where(kept, x / (1 - self.dropout), 0)
    low = linear(x, self.a.astype(x.dtype), contract, kernels)
    y = y + self.scale * linear(low.astype(x.dtype), self.b.astype(x.dtype), 1, kernels)
    return y if self.magnitude is None else y * self.column_factor(w, contract).astype(y.dtype)

  def column_factor(self, w: jax.Array, contract: int) -> jax.Array:
    """magnitude / length of each column, [*outputs]. The length has no gradient (DoRA, section 4.3)."""
    assert self.magnitude is not None
    return self.magnitude / jax.lax.stop_gradient(column_lengths(self.sum_with(w, contract), contract))

  def sum_with(self, w: jax.Array, contract: int) -> jax.Array:
    """w + scale x a b, float32."""
    return w.astype(jnp.float32) + self.scale * jnp.tensordot(self.a, self.b, 1)

  def merged(self, w: jax.Array, contract: int) -> jax.Array:
    """The changed matrix, float32 and differentiable."""
    w_new = self.sum_with(w, contract)
    return w_new if self.magnitude is None else w_new * self.column_factor(w, contract)


def column_lengths(w: jax.Array, contract: int) -> jax.Array:
  """The Euclidean length of what each output is made with, [*outputs]."""
  return jnp.sqrt(jnp.square(w.astype(jnp.float32)).sum(tuple(range(contract))))


def adapter_of(module: nn.Module) -> Adapter | None:
  """The adapter that stands beside the module's weight, or None."""
  return module.get_variable('params', 'adapter')


def dropout_rng(module: nn.Module, adapter: Adapter) -> jax.Array | None:
  """The key of an adapter's dropout, where there is any."""
  return module.make_rng('dropout') if adapter.dropout and module.has_rng('dropout') else None


def has_dropout(params: Any) -> bool:
  """Whether any adapter in a tree of parameters drops entries in training."""
  is_adapter = lambda node: isinstance(node, Adapter)
  return any(is_adapter(node) and node.dropout for node in jax.tree.leaves(params, is_leaf=is_adapter))


# ---------------------------------------------------------------------------------------------- trees of parameters
def targets_of(shapes: Mapping[str, Any], config: LoRA) -> list[str]:
  """The paths of the matrices that get adapters, in the tree's order.   shapes: of all parameters, by path."""
  return [path for path in shapes if matrix_of(path) is not None and re.search(config.targets, path)]


def init_adapters(base: Any, config: LoRA, rng: jax.Array) -> Any:
  """Fresh adapters of a model, float32: A as PyTorch draws a linear layer's weight, uniform in
  +-1 / sqrt(inputs), and B zero, so that they change nothing yet (as PEFT does).

  base: all parameters of the model, quantised or not; only DoRA reads their values.
  """
  leaves = paths.flat(base)
  made = {}
  for number, path in enumerate(targets_of(leaves, config)):
    matrix = matrix_of(path)
    assert matrix is not None
    w, layer = leaves[path], path.removesuffix('w')
    lead, inputs, outputs = split_shape(full_shape(w, path), matrix)
    bound = 1 / math.sqrt(math.prod(inputs))
    key = jax.random.fold_in(rng, number)
    made[layer + A] = jax.random.uniform(key, (*lead, *inputs, config.rank), minval=-bound, maxval=bound)
    made[layer + B] = jnp.zeros((*lead, config.rank, *outputs))
    if config.dora:
      made[layer + MAGNITUDE] = layers_lengths(dense_layers(w, path), len(lead), len(inputs))
  return paths.nest(made)


def layers_lengths(w: jax.Array, num_layer_axes: int, contract: int) -> jax.Array:
  """`column_lengths` of each layer and expert."""
  lengths = lambda w: column_lengths(w, contract)
  for _ in range(num_layer_axes):
    lengths = jax.vmap(lengths)
  return lengths(w)


def join(base: Any, trained: Any, config: LoRA) -> Any:
  """The parameters that the model computes with: the base's, with the trained adapters beside their matrices, and what
  else was trained, such as the head of a classifier. No array is copied."""
  joined = paths.flat(base)
  trained = paths.flat(trained)
  for path, leaf in trained.items():
    layer, _, name = path.rpartition('/')
    if name == A:
      magnitude = trained.get(f'{layer}/{MAGNITUDE}')
      joined[f'{layer}/adapter'] = Adapter(leaf, trained[f'{layer}/{B}'], magnitude, config.scale, config.dropout)
    elif name not in (B, MAGNITUDE):
      joined[path] = leaf
  return paths.nest(joined)


def merge(base: Any, trained: Any, config: LoRA) -> Any:
  """The parameters of a model without adapters that computes the same, float32."""
  joined = paths.flat(join(base, trained, config))
  merged = {}
  for path, leaf in joined.items():
    if isinstance(leaf, Adapter):
      continue
    layers = dense_layers(leaf, path)
    adapter = joined.get(path.removesuffix('w') + 'adapter') if path.endswith('/w') else None
    merged[path] = layers if adapter is None else _merge_layers(adapter, layers, path)
  return paths.nest(merged)


def _merge_layers(adapter: Adapter, w: jax.Array, path: str) -> jax.Array:
  matrix = matrix_of(path)
  assert matrix is not None
  lead, inputs, _ = split_shape(w.shape, matrix)
  merged = lambda adapter, w: adapter.merged(w, len(inputs))
  for _ in lead:
    merged = jax.vmap(merged)
  return merged(adapter, w)
