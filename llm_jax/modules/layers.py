"""The leaf modules. Each holds one weight (and its bias), so that adapters and quantisation can intercept it.

Shapes: D model width, V vocabulary.
"""
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.config.model import architecture as config
from llm_jax.modules.execution import Execution
from llm_jax.modules.kernels import accum_dtype
from llm_jax.modules.kernels.linear import linear, shared_linear
from llm_jax.modules.kernels.norm import normalize
from llm_jax.modules.low_rank import adapter_of, dropout_rng
from llm_jax.modules.quantized import dense, is_quantized
from llm_jax.sharding.rules import constrain, parameter_axes
from llm_jax.sharding.sums import is_shared_out, sum_of_rows


def weight(module: nn.Module, std: float, shape: tuple[int, ...]) -> Any:
  """The module's parameter `w` of `shape`, an array or quantised; drawn with `std` at first."""
  stored = module.get_variable('params', 'w')
  return stored if is_quantized(stored) else module.param('w', nn.initializers.normal(std), shape)


class Linear(nn.Module):
  """Contracts the last `contract` axes of x with the first `contract` axes of a weight of `shape`.

  Returns x's dtype, also where an adapter has added a float32 term to the product.
  """
  shape: tuple[int, ...]
  execution: Execution
  contract: int = 1
  bias: bool = False
  std: float = 0.02

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernels = self.execution.kernel_set
    w = dense(weight(self, self.std, self.shape), x.dtype)
    y = self.product(x, w)
    if (adapter := adapter_of(self)) is not None:
      y = adapter.apply(x, y, w, self.contract, kernels, dropout_rng(self, adapter))
    if self.bias:  # added in float32, because its gradient is a sum over all tokens
      y = y.astype(accum_dtype(y)) + self.param('b', nn.initializers.zeros, self.shape[self.contract:])
    return y.astype(x.dtype)

  def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """x w. Where devices share the tokens of an activation [batch, time, ...], w's gradient is summed over them.

    A layer that is applied by itself, such as the head of a classifier, has no path that tells where w is stored.
    """
    is_activation = x.ndim - self.contract == 2
    is_alone = not self.path
    if not is_activation or is_alone or not is_shared_out(x.shape) or self.is_initializing():
      return linear(x, w, self.contract, self.execution.kernel_set)
    path = '/'.join((*self.path, 'w'))
    is_stacked = path.startswith('blocks/')  # with an axis of the layers, which `nn.scan` takes away
    logical = parameter_axes(path, w.ndim + is_stacked)[is_stacked:]
    return shared_linear(x, w, self.contract, self.execution.kernel_set, logical)


class Embedding(nn.Module):
  """A table of `count` vectors of width `size`, read by index."""
  count: int
  size: int
  dtype: jnp.dtype
  std: float = 0.02

  def setup(self):
    self.w = self.param('w', nn.initializers.normal(self.std), (self.count, self.size))

  def __call__(self, index: jax.Array) -> jax.Array:
    return _rows(self.w, index, self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rows(w_VD: jax.Array, index: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """The rows of a table, in another dtype. The gradient of a row is summed in float32, because a frequent token has
  thousands of terms and a sum in bfloat16 stops growing at a few hundred."""
  return _rows_forward(w_VD, index, dtype)[0]


def _rows_forward(w_VD, index, dtype):
  # The table is first gathered over its width, because XLA replicates a gather from a table sharded on both axes.
  return constrain(jnp.asarray(w_VD, dtype), 'vocab', None)[index], (w_VD, index)


def _rows_backward(dtype, saved, d):
  w_VD, index = saved
  sum_dtype = accum_dtype(w_VD)
  if is_shared_out(index.shape):
    return sum_of_rows(index, d, w_VD.shape, sum_dtype, ('vocab', 'embed')).astype(w_VD.dtype), None
  dw_VD = jnp.zeros(w_VD.shape, sum_dtype).at[index].add(d.astype(sum_dtype)).astype(w_VD.dtype)
  return constrain(dw_VD, 'vocab', None), None


_rows.defvjp(_rows_forward, _rows_backward)


class Norm(nn.Module):
  """A norm over the last axis, computed in float32, returned in x's dtype."""
  config: config.Norm
  execution: Execution

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    size = (x.shape[-1],)
    bias = None
    match self.config:
      case config.LayerNorm():
        scale = self.param('scale', nn.initializers.ones, size)
        bias = self.param('bias', nn.initializers.zeros, size)
      case config.RMSNorm():
        scale = self.param('scale', nn.initializers.ones, size)
      case config.ZeroCenteredRMSNorm():
        scale = 1 + self.param('scale', nn.initializers.zeros, size)
    return normalize(x, scale, bias, self.config.eps, self.execution.kernel_set)
