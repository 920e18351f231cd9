"""Multi-head latent attention (DeepSeek-V2, section 2.1; DeepSeek-V3, section 2.1.1)."""
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
from llm_jax.modules.layers import Linear, Norm
from llm_jax.modules.positions import rotate
from llm_jax.sharding.rules import constrain


class LatentAttention(nn.Module):
  """Keys and values of all heads from one compressed vector of size R, and one rotary key for all heads.

  Without a cache, keys and values are expanded. With one, which holds compressed vectors and rotary keys, they never
  are: as q (W c) = (q W) c, the query goes to where the compressed vectors are, which are the keys and the values of
  all heads there, and only what came of the attention is expanded (DeepSeek-V2, section 2.1.2: weights absorbed).
  In a head the part without position comes first, then the rotary part, half-split.
  """
  config: config.LatentAttention
  execution: Execution
  std: float
  residual_std: float
  dropout: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array, inputs: LayerInputs, cache: KVCache | None, layer: jax.Array | None
               ) -> tuple[jax.Array, KVCache | None]:
    c, D, init = self.config, x_BTD.shape[-1], dict(execution=self.execution, std=self.std)
    H, R, K = c.num_heads, c.kv_rank, c.nope_dim + c.rope_dim
    norm = lambda name, x: Norm(c.norm, self.execution, name=name)(x)
    if c.q_rank is None:
      q_BTHK = Linear((D, H, K), **init, name='query')(x_BTD)
    else:
      compressed = norm('query_norm', Linear((D, c.q_rank), **init, name='query_down')(x_BTD))
      q_BTHK = Linear((c.q_rank, H, K), **init, name='query_up')(compressed)
    angles = inputs.angles[c.rope_dim]
    q_nope, q_rotary = jnp.split(constrain(q_BTHK, 'batch', 'seq', 'heads', None), [c.nope_dim], axis=-1)
    q_rotary = rotate(q_rotary, angles)
    c_BTR = norm('kv_norm', Linear((D, R), **init, name='kv_down')(x_BTD))
    k_rotary = rotate(Linear((D, c.rope_dim), **init, name='key_rotary')(x_BTD)[:, :, None], angles)
    key_up = HeadLinear((R, H, c.nope_dim), **init, name='key_up')
    value_up = HeadLinear((R, H, c.v_dim), **init, name='value_up')

    if cache is None:
      q_BTHK = jnp.concatenate([q_nope, q_rotary], axis=-1)
      k_BTHK = jnp.concatenate([key_up(c_BTR), jnp.broadcast_to(k_rotary, q_rotary.shape)], axis=-1)
      rng = self.make_rng('dropout') if self.dropout and self.has_rng('dropout') else None
      y_BTHK = causal_attention(q_BTHK, k_BTHK, value_up(c_BTR), inputs.segment_ids_BT, scale=c.scale,
                                kernels=self.execution.kernel_set, dropout_rate=self.dropout, dropout_rng=rng,
                                split=inputs.split)
    else:
      slots = inputs.slots[cache.capacity]
      cache, (c_B1SR, k_B1SK) = cache.update(layer, (c_BTR[:, :, None], k_rotary), slots)
      y_BTHR = cached_attention((key_up.into_latent(q_nope), q_rotary), (c_B1SR, k_B1SK), c_B1SR, inputs.positions_BT,
                                slots.positions_BR, scale=c.scale or K**-0.5)
      y_BTHK = value_up.out_of_latent(y_BTHR)
    out = Linear((H, c.v_dim, D), self.execution, contract=2, std=self.residual_std, name='out')
    return out(constrain(y_BTHK, 'batch', 'seq', 'heads', None)), cache


class HeadLinear(nn.Module):
  """A weight [R, H, K] from compressed vectors to heads, that can also be applied head by head, in both directions."""
  shape: tuple[int, int, int]
  execution: Execution
  std: float

  def setup(self):
    self.w = self.param('w', nn.initializers.normal(self.std), self.shape)

  def __call__(self, c_BTR: jax.Array) -> jax.Array:
    """The heads of a compressed vector, [B, T, H, K]."""
    y_BTHK = linear(c_BTR, jnp.asarray(self.w, c_BTR.dtype), 1, self.execution.kernel_set).astype(c_BTR.dtype)
    return constrain(y_BTHK, 'batch', 'seq', 'heads', None)

  def into_latent(self, x_BTHK: jax.Array) -> jax.Array:
    """x w' of each head, [B, T, H, R]: its product with c is that of x with the head made of c."""
    return self._head_by_head(x_BTHK, 2)

  def out_of_latent(self, x_BTHR: jax.Array) -> jax.Array:
    """x w of each head, [B, T, H, K]."""
    return self._head_by_head(x_BTHR, 0)

  def _head_by_head(self, x_BTHi: jax.Array, axis: int) -> jax.Array:
    y_HBTo = jax.lax.dot_general(x_BTHi, jnp.asarray(self.w, x_BTHi.dtype), (((3,), (axis,)), ((2,), (1,))))
    return constrain(jnp.moveaxis(y_HBTo, 0, 2).astype(x_BTHi.dtype), 'batch', 'seq', 'heads', None)
