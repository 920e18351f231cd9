"""Sparse mixture of experts: a router, its experts, and the one that all tokens share."""
import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.config.model import architecture as config
from llm_jax.modules.execution import Execution
from llm_jax.modules.feed_forward import ACTIVATIONS, FeedForward
from llm_jax.modules.kernels.experts import collect, grouped_linear, sort_rows, spread
from llm_jax.modules.kernels.ordering import elementwise
from llm_jax.modules.layer_inputs import LayerInputs
from llm_jax.modules.layers import Linear
from llm_jax.modules.routing import Routing, one_hot, route, within_capacity
from llm_jax.sharding.experts import on_own_experts


class MixtureOfExperts(nn.Module):
  """The sum of the chosen experts' outputs, each times its weight, and the shared expert's (Mixtral, section 2.1;
  DeepSeek-V3, section 2.1.2). Padding passes by the routed experts.

  A capacity is that of the sequence that is passed. With a cache nothing is dropped, so that what is generated depends
  neither on padding nor on the pieces in which a prompt or a draft is read.
  """
  config: config.MixtureOfExperts
  execution: Execution
  std: float
  residual_std: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array, inputs: LayerInputs) -> tuple[jax.Array, Routing]:
    c, (B, T, D) = self.config, x_BTD.shape
    real_BT = jnp.ones((B, T), bool) if inputs.segment_ids_BT is None else inputs.segment_ids_BT != 0
    # In float32, whatever the accelerator makes of float32 by default: close scores decide where a token goes.
    with jax.default_matmul_precision('float32'):
      router = Linear((D, c.num_experts), self.execution, std=self.std, name='router')
      logits_BTE = router(x_BTD.astype(jnp.float32))
    bias_E = Balance(c.num_experts, name='balance')() if isinstance(c.router, config.SigmoidRouter) else None
    expert_BTC, weight_BTC, routing = route(c.router, c.top_k, logits_BTE, bias_E, real_BT)
    expert_BTC = jnp.where(real_BT[..., None], expert_BTC, c.num_experts)  # nobody's
    if c.capacity_factor is not None and inputs.slots is None:
      capacity = math.ceil(c.capacity_factor * T * c.top_k / c.num_experts)
      kept = within_capacity(inputs.split.restore(expert_BTC), c.num_experts, capacity)
      expert_BTC = jnp.where(inputs.split.arrange(kept), expert_BTC, c.num_experts)

    experts = Experts(c.num_experts, c.expert, self.execution, self.std, self.residual_std, name='experts')
    y_BTD = experts(x_BTD, expert_BTC, weight_BTC)
    if c.shared is not None:
      y_BTD += FeedForward(c.shared, self.execution, self.std, self.residual_std, name='shared')(x_BTD)
    return y_BTD, routing


class Balance(nn.Module):
  """What is added to each expert's score when experts are chosen. No gradient reaches it: the objective moves it."""
  num_experts: int

  @nn.compact
  def __call__(self) -> jax.Array:
    return self.param('bias', nn.initializers.zeros, (self.num_experts,))


class Experts(nn.Module):
  """Every token through its experts: copies of tokens are sorted by expert, so that no token is dropped and an
  expert's are one matrix product."""
  num_experts: int
  config: config.MLP | config.GLU
  execution: Execution
  std: float
  residual_std: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array, expert_BTC: jax.Array, weight_BTC: jax.Array) -> jax.Array:
    """An expert of `num_experts` or more is none. Returns x's dtype."""
    E, D, F = self.num_experts, x_BTD.shape[-1], self.config.width(x_BTD.shape[-1])
    shapes = {'up': (E, D, F), 'down': (E, F, D)}
    if isinstance(self.config, config.GLU):
      shapes['gate'] = (E, D, F)
    std = lambda name: self.residual_std if name == 'down' else self.std
    weights = {name: ExpertWeight(shape, std(name), name=name)().astype(x_BTD.dtype) for name, shape in shapes.items()}
    serve = functools.partial(serve_tokens, act=ACTIVATIONS[self.config.activation], kernels=self.execution.kernel_set)
    return on_own_experts(serve, x_BTD, expert_BTC, weight_BTC, weights).astype(x_BTD.dtype)


def serve_tokens(x_BTD: jax.Array, expert_BTC: jax.Array, weight_BTC: jax.Array, weights: dict[str, jax.Array], *,
                 act: Callable, kernels: str) -> jax.Array:
  """The weighted sum of what each token's experts say, float32; experts that are not in `weights` say nothing."""
  E, N = weights['up'].shape[0], x_BTD.shape[0] * x_BTD.shape[1]
  expert_M = expert_BTC.reshape(-1)
  order_M, inverse_M = sort_rows(jnp.where((expert_M >= 0) & (expert_M < E), expert_M, E))
  sizes_E = one_hot(expert_M, E).sum(0, dtype=jnp.int32)
  through = lambda name, x_M: grouped_linear(x_M, weights[name], sizes_E, kernels)
  x_MD = spread(x_BTD.reshape(N, -1), order_M, inverse_M)
  if 'gate' in weights:
    gated = lambda gate, up: act(gate) * up
    h_MF = elementwise(gated, through('gate', x_MD), through('up', x_MD), kernels=kernels)
  else:
    h_MF = elementwise(act, through('up', x_MD), kernels=kernels)
  weight_M1 = spread(weight_BTC.reshape(-1, 1), order_M, inverse_M)
  return collect(through('down', h_MF) * weight_M1, order_M, inverse_M, N).reshape(x_BTD.shape)


class ExpertWeight(nn.Module):
  """The matrices of all experts, [E, in, out]."""
  shape: tuple[int, int, int]
  std: float

  @nn.compact
  def __call__(self) -> jax.Array:
    return self.param('w', nn.initializers.normal(self.std), self.shape)
