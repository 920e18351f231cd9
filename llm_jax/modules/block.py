"""One layer of the decoder, as the architecture diagram draws it."""
import flax.linen as nn
import jax

from llm_jax.config import architecture as config
from llm_jax.modules.attention import Attention
from llm_jax.modules.cache import KVCache, Slots
from llm_jax.modules.execution import Execution
from llm_jax.modules.feed_forward import FeedForward
from llm_jax.modules.layers import Norm
from llm_jax.modules.positions import Rotation
from llm_jax.sharding.rules import constrain


class Block(nn.Module):
  """x + attention(norm x), then x + feed_forward(norm x)."""
  config: config.Block
  execution: Execution
  std: float
  residual_std: float
  dropout: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array, angles: dict[int, Rotation], positions_BT: jax.Array,
               segment_ids_BT: jax.Array | None, slots: Slots | None, cache: KVCache | None,
               layer: jax.Array | None) -> tuple[jax.Array, KVCache | None]:
    init = dict(execution=self.execution, std=self.std, residual_std=self.residual_std)
    drop = nn.Dropout(self.dropout, deterministic=not self.has_rng('dropout'))
    attention = Attention(self.config.attention, dropout=self.dropout, **init, name='attention')
    feed_forward = FeedForward(self.config.feed_forward, **init, name='feed_forward')

    h_BTD = Norm(self.config.norm, self.execution, name='attention_norm')(x_BTD)
    h_BTD, cache = attention(h_BTD, angles, positions_BT, segment_ids_BT, slots, cache, layer)
    x_BTD = constrain(x_BTD + drop(h_BTD), 'batch', 'seq', 'embed')
    h_BTD = feed_forward(Norm(self.config.norm, self.execution, name='feed_forward_norm')(x_BTD))
    return constrain(x_BTD + drop(h_BTD), 'batch', 'seq', 'embed'), cache
