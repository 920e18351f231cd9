"""One layer of the decoder, as the architecture diagram draws it.

Shapes: B batch, T time, D model width.
"""
import flax.linen as nn
import jax

from llm_jax.config.model import architecture as config
from llm_jax.modules.attention import Attention
from llm_jax.modules.cache import KVCache
from llm_jax.modules.execution import Execution
from llm_jax.modules.feed_forward import FeedForward
from llm_jax.modules.latent_attention import LatentAttention
from llm_jax.modules.layer_inputs import LayerInputs
from llm_jax.modules.layers import Norm
from llm_jax.modules.mixture import MixtureOfExperts
from llm_jax.modules.routing import Routing
from llm_jax.sharding.rules import constrain


class Block(nn.Module):
  """Attention and feed-forward, each added to the residual stream. The types of block differ in where they normalise.

  Returns the residual stream, the cache with the new tokens, and the statistics of the router (None without one).
  """
  config: config.AnyBlock
  execution: Execution
  std: float
  residual_std: float
  dropout: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array, inputs: LayerInputs, cache: KVCache | None, layer: jax.Array | None
               ) -> tuple[jax.Array, KVCache | None, Routing | None]:
    c = self.config
    init = (self.execution, self.std, self.residual_std)
    drop = nn.Dropout(self.dropout, deterministic=not self.has_rng('dropout'))
    norm = lambda name, x: Norm(c.norm, self.execution, name=name)(x)
    add = lambda x, h: constrain(x + drop(h), 'batch', 'seq', 'embed')
    match c.attention:
      case config.Attention():
        attention = Attention(c.attention, *init, self.dropout, name='attention')
      case config.LatentAttention():
        attention = LatentAttention(c.attention, *init, self.dropout, name='attention')
    match c.feed_forward:
      case config.MixtureOfExperts():
        feed_forward = MixtureOfExperts(c.feed_forward, *init, name='feed_forward')
      case config.MLP() | config.GLU() | config.ClampedGLU():
        dense = FeedForward(c.feed_forward, *init, name='feed_forward')
        feed_forward = lambda h_BTD, _: (dense(h_BTD), None)

    match c:
      case config.Block():
        h_BTD, cache = attention(norm('attention_norm', x_BTD), inputs, cache, layer)
        x_BTD = add(x_BTD, h_BTD)
        h_BTD, routing = feed_forward(norm('feed_forward_norm', x_BTD), inputs)
        x_BTD = add(x_BTD, h_BTD)
      case config.PostNormBlock():
        h_BTD, cache = attention(x_BTD, inputs, cache, layer)
        x_BTD = norm('attention_norm', add(x_BTD, h_BTD))
        h_BTD, routing = feed_forward(x_BTD, inputs)
        x_BTD = norm('feed_forward_norm', add(x_BTD, h_BTD))
      case config.SandwichBlock():
        h_BTD, cache = attention(norm('attention_norm', x_BTD), inputs, cache, layer)
        x_BTD = add(x_BTD, norm('attention_out_norm', h_BTD))
        h_BTD, routing = feed_forward(norm('feed_forward_norm', x_BTD), inputs)
        x_BTD = add(x_BTD, norm('feed_forward_out_norm', h_BTD))
      case config.OutputNormBlock():
        h_BTD, cache = attention(x_BTD, inputs, cache, layer)
        x_BTD = add(x_BTD, norm('attention_out_norm', h_BTD))
        h_BTD, routing = feed_forward(x_BTD, inputs)
        x_BTD = add(x_BTD, norm('feed_forward_out_norm', h_BTD))
      case config.ParallelBlock():
        h_BTD, cache = attention(norm('attention_norm', x_BTD), inputs, cache, layer)
        y_BTD, routing = feed_forward(norm('feed_forward_norm', x_BTD), inputs)
        x_BTD = add(x_BTD + drop(h_BTD), y_BTD)
    return x_BTD, cache, routing
