"""Causal self-attention with grouped key/value heads (Vaswani et al. 2017, section 3.2; Ainslie et al. 2023).

Shapes: B batch, T time, S time of the keys, D model width, H query heads, G key/value heads, K head size.
"""
import flax.linen as nn
import jax

from llm_jax.config.model import architecture as config
from llm_jax.config.model.attention import FullWidthNorm, PerHeadNorm
from llm_jax.modules.cache import KVCache
from llm_jax.modules.execution import Execution
from llm_jax.modules.kernels.attention import causal_attention
from llm_jax.modules.kernels.cached_attention import cached_attention
from llm_jax.modules.layer_inputs import LayerInputs
from llm_jax.modules.layers import Linear, Norm
from llm_jax.modules.positions import rotate
from llm_jax.sharding.rules import constrain


class Attention(nn.Module):
  """Multi-head, grouped-query and multi-query attention are one class: H query heads share G key/value heads."""
  config: config.Attention
  execution: Execution
  std: float
  residual_std: float
  dropout: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array, inputs: LayerInputs, cache: KVCache | None, layer: jax.Array | None
               ) -> tuple[jax.Array, KVCache | None]:
    c = self.config
    D, H, G = x_BTD.shape[-1], c.num_heads, c.kv_heads
    K = c.head_size(D)

    def project(heads: int, name: str) -> jax.Array:
      y_BTHK = Linear((D, heads, K), self.execution, bias=c.bias, std=self.std, name=name)(x_BTD)
      return constrain(y_BTHK, 'batch', 'seq', 'heads', None)

    q_BTHK = project(H, 'query')
    k_BTGK = project(G, 'key')
    v_BTGK = project(G, 'value')
    q_BTHK = self.normalize('query_norm', q_BTHK)
    k_BTGK = self.normalize('key_norm', k_BTGK)
    rotation = inputs.rotation_of(c.positions, c.rotary_size(D))
    if rotation is not None:
      q_BTHK = rotate(q_BTHK, rotation)
      k_BTGK = rotate(k_BTGK, rotation)

    sinks_H = Sinks(H, self.std, name='sinks')() if c.sinks else None
    if cache is None:
      rng = self.make_rng('dropout') if self.dropout and self.has_rng('dropout') else None
      y_BTHK = causal_attention(q_BTHK, k_BTGK, v_BTGK, inputs.segment_ids_BT, kernels=self.execution.kernel_set,
                                window=c.window, soft_cap=c.soft_cap, scale=c.scale, sinks_H=sinks_H,
                                dropout_rate=self.dropout, dropout_rng=rng, split=inputs.split)
    else:
      slots = inputs.slots_of(cache)
      cache, (k_BGSK, v_BGSK) = cache.update(layer, (k_BTGK, v_BTGK), slots)
      y_BTHK = cached_attention(q_BTHK, k_BGSK, v_BGSK, inputs.positions_BT, slots.positions_BS,
                                window=c.window, soft_cap=c.soft_cap, scale=c.scale, sinks_H=sinks_H)
    y_BTHK = constrain(y_BTHK, 'batch', 'seq', 'heads', None)
    out = Linear((H, K, D), self.execution, contract=2, bias=c.has_out_bias, std=self.residual_std, name='out')
    return out(y_BTHK), cache

  def normalize(self, name: str, x_BTHK: jax.Array) -> jax.Array:
    """Queries or keys, normalised as `qk_norm` says."""
    match self.config.qk_norm:
      case None:
        return x_BTHK
      case PerHeadNorm(norm=norm):
        return Norm(norm, self.execution, name=name)(x_BTHK)
      case FullWidthNorm(norm=norm):
        B, T, H, K = x_BTHK.shape
        y_BTHK = Norm(norm, self.execution, name=name)(x_BTHK.reshape(B, T, H * K)).reshape(B, T, H, K)
        return constrain(y_BTHK, 'batch', 'seq', 'heads', None)


class Sinks(nn.Module):
  """A score of each query head that no key has."""
  heads: int
  std: float

  @nn.compact
  def __call__(self) -> jax.Array:
    return self.param('logit', nn.initializers.normal(self.std), (self.heads,))
