"""Sparse mixture of experts: a router, its experts, and an expert that all tokens share.

Shapes: B batch, T time, D model width, F feed-forward width, E experts, X chosen experts, M tokens (B x T),
  A assignments of tokens to experts (M x X).
"""
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.config.model import architecture as config
from llm_jax.modules.execution import Execution
from llm_jax.modules.feed_forward import FeedForward, inner
from llm_jax.modules.kernels import accum_dtype
from llm_jax.modules.kernels.experts import combine, dispatch, grouped_linear, rows_of, sort_rows
from llm_jax.modules.kernels.ordering import elementwise
from llm_jax.modules.layer_inputs import LayerInputs
from llm_jax.modules.layers import Linear, weight
from llm_jax.modules.low_rank import A, B, adapter_of
from llm_jax.modules.quantized import dense
from llm_jax.modules.routing import Routing, one_hot, route, within_capacity
from llm_jax.sharding.experts import run_on_own_experts


class MixtureOfExperts(nn.Module):
  """The weighted sum of the chosen experts' outputs, plus the output of the shared expert (Mixtral, section 2.1;
  DeepSeek-V3, section 2.1.2). The routed experts skip padding.

  An expert's capacity is counted per sequence of the call. With a cache no token is dropped, so that generated text
  depends neither on padding nor on the pieces in which a prompt or a draft is read.
  """
  config: config.MixtureOfExperts
  execution: Execution
  std: float
  residual_std: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array, inputs: LayerInputs) -> tuple[jax.Array, Routing]:
    c, (B, T, D) = self.config, x_BTD.shape
    real_BT = jnp.ones((B, T), bool) if inputs.segment_ids_BT is None else inputs.segment_ids_BT != 0
    # Full float32 precision on every accelerator, because small differences between scores decide the choice.
    with jax.default_matmul_precision('float32'):
      has_bias = isinstance(c.router, config.SoftmaxRouter) and c.router.bias
      router = Linear((D, c.num_experts), self.execution, bias=has_bias, std=self.std, name='router')
      logits_BTE = router(x_BTD.astype(jnp.float32))
    bias_E = Balance(c.num_experts, name='balance')() if isinstance(c.router, config.SigmoidRouter) else None
    expert_BTX, weight_BTX, routing = route(c.router, c.top_k, logits_BTE, bias_E, real_BT)
    no_expert = c.num_experts
    expert_BTX = jnp.where(real_BT[..., None], expert_BTX, no_expert)
    has_cache = inputs.slots is not None
    capacity = c.capacity(T)
    if capacity is not None and not has_cache:
      kept_BTX = within_capacity(inputs.split.restore(expert_BTX), c.num_experts, capacity)
      expert_BTX = jnp.where(inputs.split.arrange(kept_BTX), expert_BTX, no_expert)

    experts = Experts(c.num_experts, c.expert, self.execution, self.std, self.residual_std, name='experts')
    y_BTD = experts(x_BTD, expert_BTX, weight_BTX)
    if c.shared is not None:
      y_BTD += FeedForward(c.shared, self.execution, self.std, self.residual_std, name='shared')(x_BTD)
    return y_BTD, routing


class Balance(nn.Module):
  """The bias added to each expert's score when experts are chosen. It has no gradient; the objective updates it."""
  num_experts: int

  @nn.compact
  def __call__(self) -> jax.Array:
    return self.param('bias', nn.initializers.zeros, (self.num_experts,))


class Experts(nn.Module):
  """Applies to every token its chosen experts.

  Copies of the tokens are sorted by expert, so that each expert computes one matrix product and no token is dropped.
  """
  num_experts: int
  config: config.Dense
  execution: Execution
  std: float
  residual_std: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array, expert_BTX: jax.Array, weight_BTX: jax.Array) -> jax.Array:
    """expert_BTX: an index of `num_experts` or more means no expert. Returns x's dtype."""
    E, D, F = self.num_experts, x_BTD.shape[-1], self.config.width(x_BTD.shape[-1])
    inward, f = inner(self.config)
    weights = {}
    for name in (*inward, 'down'):
      shape, std = ((E, F, D), self.residual_std) if name == 'down' else ((E, D, F), self.std)
      for kind, array in ExpertWeight(shape, std, self.config.bias, x_BTD.dtype, name=name)().items():
        weights[f'{name}/{kind}'] = array
    ffn = functools.partial(expert_ffn, inward=inward, f=f, kernels=self.execution.kernel_set)
    return run_on_own_experts(ffn, x_BTD, expert_BTX, weight_BTX, weights).astype(x_BTD.dtype)


def expert_ffn(x_BTD: jax.Array, expert_BTX: jax.Array, weight_BTX: jax.Array, weights: dict[str, jax.Array], *,
                 inward: Sequence[str], f: Callable[..., jax.Array], kernels: str) -> jax.Array:
  """The weighted sum of the outputs of each token's experts, float32. Experts without weights here add nothing.

  Args:
    weights: by path, such as 'up/w' [E, D, F] and 'up/b' [E, F], which may be absent.
    inward, f: see `feed_forward.inner`.
  """
  E = weights['up/w'].shape[0]
  M = x_BTD.shape[0] * x_BTD.shape[1]
  expert_A = expert_BTX.reshape(-1)
  is_here_A = (expert_A >= 0) & (expert_A < E)
  here_or_none_A = jnp.where(is_here_A, expert_A, E)
  order_A, inverse_A = sort_rows(here_or_none_A)
  sorted_A = here_or_none_A[order_A]
  sizes_E = one_hot(expert_A, E).sum(0, dtype=jnp.int32)

  def project(name: str, x_A: jax.Array) -> jax.Array:
    multiply = functools.partial(grouped_linear, sizes_E=sizes_E, kernels=kernels)
    y_A = multiply(x_A, weights[f'{name}/w'])
    if f'{name}/{A}' in weights:
      low_A = multiply(x_A, weights[f'{name}/{A}'])
      y_A += multiply(low_A, weights[f'{name}/{B}'])
    if f'{name}/b' in weights:  # added in float32, because its gradient is a sum over all tokens
      b_A = rows_of(weights[f'{name}/b'], sorted_A)
      y_A = (y_A.astype(accum_dtype(y_A)) + b_A).astype(x_A.dtype)
    return y_A

  x_AD = dispatch(x_BTD.reshape(M, -1), order_A, inverse_A)
  h_AF = elementwise(f, *(project(name, x_AD) for name in inward), kernels=kernels)
  weight_A1 = dispatch(weight_BTX.reshape(-1, 1), order_A, inverse_A)
  y_AD = project('down', h_AF) * weight_A1
  y_MD: Any = combine(y_AD, order_A, inverse_A, M)  # Any as in kernels/context_attention.py
  return y_MD.reshape(x_BTD.shape)


class ExpertWeight(nn.Module):
  """The matrices of all experts, [E, in, out], and their biases, [E, out]."""
  shape: tuple[int, int, int]
  std: float
  bias: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self) -> dict[str, jax.Array]:
    """The weight, the float32 bias if there is one, and the two of its adapter where it has one, the second scaled."""
    arrays = {'w': dense(weight(self, self.std, self.shape), self.dtype)}
    if self.bias:
      experts, _, size = self.shape
      arrays['b'] = self.param('b', nn.initializers.zeros, (experts, size))
    if (adapter := adapter_of(self)) is not None:
      arrays[A] = adapter.a.astype(self.dtype)
      arrays[B] = (adapter.scale * adapter.b).astype(self.dtype)
    return arrays
