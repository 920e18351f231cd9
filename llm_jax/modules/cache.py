"""Key/value caches: plain pytrees, passed in and returned."""
import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.config.architecture import Architecture, Attention


@flax.struct.dataclass
class KVCache:
  """Keys and values of one attention layer of the pattern, for all its repeats: [N, B, S, G, K].

  Slot s holds position s, so a query at position p sees the slots up to p, whatever was written beyond.
  """
  keys: jax.Array
  values: jax.Array

  @classmethod
  def empty(cls, attention: Attention, d_model: int, layers: int, batch: int, length: int, dtype) -> 'KVCache':
    shape = (layers, batch, length, attention.kv_heads, attention.head_size(d_model))
    return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

  def write(self, layer: jax.Array | int, k_BTGK: jax.Array, v_BTGK: jax.Array, positions_BT: jax.Array) -> 'KVCache':
    """Stores keys and values at their positions; positions outside the cache are dropped."""
    rows = jnp.arange(k_BTGK.shape[0])[:, None]
    put = lambda cache, new: cache.at[layer, rows, positions_BT].set(new.astype(cache.dtype), mode='drop')
    return KVCache(put(self.keys, k_BTGK), put(self.values, v_BTGK))

  def read(self, layer: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Keys and values of one layer, each [B, S, G, K]."""
    take = lambda cache: jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False)
    return take(self.keys), take(self.values)


# A model's cache: one KVCache for each block of the prefix, then one for each block of the pattern.
Cache = tuple[tuple[KVCache, ...], tuple[KVCache, ...]]


def init_cache(architecture: Architecture, batch: int, length: int, dtype=jnp.float32) -> Cache:
  make = lambda block, layers: KVCache.empty(block.attention, architecture.d_model, layers, batch, length, dtype)
  return (tuple(make(block, 1) for block in architecture.prefix),
          tuple(make(block, architecture.repeats) for block in architecture.pattern))
