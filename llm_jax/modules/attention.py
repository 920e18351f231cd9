"""Causal self-attention with grouped key/value heads (Vaswani et al. 2017, section 3.2; Ainslie et al. 2023)."""
import flax.linen as nn
import jax

from llm_jax.config.model import architecture as config
from llm_jax.modules.cache import KVCache
from llm_jax.modules.execution import Execution
from llm_jax.modules.kernels.attention import causal_attention
from llm_jax.modules.kernels.cached_attention import cached_attention
from llm_jax.modules.layer_inputs import LayerInputs
from llm_jax.modules.layers import Linear
from llm_jax.modules.positions import rotate
from llm_jax.sharding.rules import constrain


class Attention(nn.Module):
  """MHA, GQA and MQA are one class: G key/value heads serve H query heads."""
  config: config.Attention
  execution: Execution
  std: float
  residual_std: float
  dropout: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array, inputs: LayerInputs, cache: KVCache | None, layer: jax.Array | None
               ) -> tuple[jax.Array, KVCache | None]:
    D, H, G = x_BTD.shape[-1], self.config.num_heads, self.config.kv_heads
    K, bias = self.config.head_size(D), self.config.bias
    project = lambda heads, name: constrain(
        Linear((D, heads, K), self.execution, bias=bias, std=self.std, name=name)(x_BTD), 'batch', 'seq', 'heads', None)
    q_BTHK, k_BTGK, v_BTGK = project(H, 'query'), project(G, 'key'), project(G, 'value')
    if K in inputs.angles:
      q_BTHK, k_BTGK = rotate(q_BTHK, inputs.angles[K]), rotate(k_BTGK, inputs.angles[K])

    form = dict(window=self.config.window, soft_cap=self.config.soft_cap, scale=self.config.scale)
    if cache is None:
      rng = self.make_rng('dropout') if self.dropout and self.has_rng('dropout') else None
      y_BTHK = causal_attention(q_BTHK, k_BTGK, v_BTGK, inputs.segment_ids_BT, kernels=self.execution.kernel_set,
                                dropout_rate=self.dropout, dropout_rng=rng, split=inputs.split, **form)
    else:
      slots = inputs.slots[cache.capacity]
      cache, (k_BGSK, v_BGSK) = cache.update(layer, (k_BTGK, v_BTGK), slots)
      y_BTHK = cached_attention(q_BTHK, k_BGSK, v_BGSK, inputs.positions_BT, slots.positions_BR, **form)
    out = Linear((H, K, D), self.execution, contract=2, bias=bias, std=self.residual_std, name='out')
    return out(constrain(y_BTHK, 'batch', 'seq', 'heads', None)), cache
