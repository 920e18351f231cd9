"""Multi-head latent attention (DeepSeek-V2, section 2.1; DeepSeek-V3, section 2.1.1).

Shapes: B batch, T time, S time of the keys, D model width, H query heads, K head size, R latent rank.
"""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.config.model import architecture as config
from llm_jax.modules.cache import KVCache
from llm_jax.modules.execution import Execution
from llm_jax.modules.kernels.attention import causal_attention
from llm_jax.modules.kernels.cached_attention import cached_attention
from llm_jax.modules.kernels.linear import linear
from llm_jax.modules.layer_inputs import LayerInputs
from llm_jax.modules.layers import Linear, Norm, weight
from llm_jax.modules.low_rank import adapter_of, dropout_rng
from llm_jax.modules.positions import rotate
from llm_jax.modules.quantized import dense
from llm_jax.sharding.rules import constrain


class LatentAttention(nn.Module):
  """The keys and values of all heads are made from one compressed vector of size R; one rotary key serves all heads.

  Without a cache the keys and values are expanded. A cache holds compressed vectors and rotary keys, and with a cache
  nothing is expanded: as q (W c) = (q W) c, the query is projected to the space of the compressed vectors, which are
  the keys and the values of all heads there, and only the result is expanded (DeepSeek-V2, section 2.1.2: absorbed
  weights). In a head, the part without positions comes first, then the rotary part, half-split.
  """
  config: config.LatentAttention
  execution: Execution
  std: float
  residual_std: float
  dropout: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array, inputs: LayerInputs, cache: KVCache | None, layer: jax.Array | None
               ) -> tuple[jax.Array, KVCache | None]:
    c, D = self.config, x_BTD.shape[-1]
    H, R, K = c.num_heads, c.kv_rank, c.nope_dim + c.rope_dim
    project = functools.partial(Linear, execution=self.execution, std=self.std)
    norm = lambda name, x: Norm(c.norm, self.execution, name=name)(x)
    rotation = inputs.rotation_of(None, c.rope_dim)
    assert rotation is not None, 'an architecture with latent attention has rotary positions'

    if c.q_rank is None:
      q_BTHK = project((D, H, K), name='query')(x_BTD)
    else:
      compressed = norm('query_norm', project((D, c.q_rank), name='query_down')(x_BTD))
      q_BTHK = project((c.q_rank, H, K), name='query_up')(compressed)
    q_nope, q_rotary = jnp.split(constrain(q_BTHK, 'batch', 'seq', 'heads', None), [c.nope_dim], axis=-1)
    q_rotary = rotate(q_rotary, rotation)

    c_BTR = norm('kv_norm', project((D, R), name='kv_down')(x_BTD))
    k_BT1K = project((D, c.rope_dim), name='key_rotary')(x_BTD)[:, :, None]
    k_rotary = rotate(k_BT1K, rotation)
    key_up = HeadLinear((R, H, c.nope_dim), self.execution, self.std, name='key_up')
    value_up = HeadLinear((R, H, c.v_dim), self.execution, self.std, name='value_up')

    if cache is None:
      q_BTHK = jnp.concatenate([q_nope, q_rotary], axis=-1)
      k_BTHK = jnp.concatenate([key_up(c_BTR), jnp.broadcast_to(k_rotary, q_rotary.shape)], axis=-1)
      rng = self.make_rng('dropout') if self.dropout and self.has_rng('dropout') else None
      y_BTHK = causal_attention(q_BTHK, k_BTHK, value_up(c_BTR), inputs.segment_ids_BT, scale=c.scale,
                                kernels=self.execution.kernel_set, dropout_rate=self.dropout, dropout_rng=rng,
                                split=inputs.split)
    else:
      slots = inputs.slots_of(cache)
      cache, (c_B1SR, k_B1SK) = cache.update(layer, (c_BTR[:, :, None], k_rotary), slots)
      y_BTHR = cached_attention((key_up.into_latent(q_nope), q_rotary), (c_B1SR, k_B1SK), c_B1SR, inputs.positions_BT,
                                slots.positions_BS, scale=c.scale or K**-0.5)
      y_BTHK = value_up.out_of_latent(y_BTHR)
    y_BTHK = constrain(y_BTHK, 'batch', 'seq', 'heads', None)
    return Linear((H, c.v_dim, D), self.execution, contract=2, std=self.residual_std, name='out')(y_BTHK), cache


class HeadLinear(nn.Module):
  """A weight [R, H, K] from compressed vectors to heads. It can also be applied head by head, in both directions."""
  shape: tuple[int, int, int]
  execution: Execution
  std: float

  def setup(self):
    self.w = weight(self, self.std, self.shape)

  def __call__(self, c_BTR: jax.Array) -> jax.Array:
    """The heads of a compressed vector, [B, T, H, K]."""
    kernels = self.execution.kernel_set
    w = dense(self.w, c_BTR.dtype)
    y_BTHK = linear(c_BTR, w, 1, kernels)
    if (adapter := adapter_of(self)) is not None:
      y_BTHK = adapter.apply(c_BTR, y_BTHK, w, 1, kernels, dropout_rng(self, adapter))
    return constrain(y_BTHK.astype(c_BTR.dtype), 'batch', 'seq', 'heads', None)

  def into_latent(self, x_BTHK: jax.Array) -> jax.Array:
    """x w' of each head, [B, T, H, R]. Its product with c equals the product of x with the head made from c."""
    return self._head_by_head(x_BTHK, 2)

  def out_of_latent(self, x_BTHR: jax.Array) -> jax.Array:
    """x w of each head, [B, T, H, K]."""
    return self._head_by_head(x_BTHR, 0)

  def _head_by_head(self, x: jax.Array, axis: int) -> jax.Array:
    """Contracts x, [B, T, H, size], with axis `axis` of each head's weight."""
    w = dense(self.w, x.dtype)
    if (adapter := adapter_of(self)) is not None:
      w = adapter.merged(w, 1).astype(x.dtype)
    y = jax.lax.dot_general(x, w, (((3,), (axis,)), ((2,), (1,))))  # [H, B, T, size]
    return constrain(jnp.moveaxis(y, 0, 2).astype(x.dtype), 'batch', 'seq', 'heads', None)
