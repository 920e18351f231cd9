"""Key/value caches: plain pytrees, passed in and returned."""
import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.config.architecture import Architecture, Attention
from llm_jax.sharding.rules import constrain

EMPTY = jnp.iinfo(jnp.int32).max  # later than every position, so no query sees it


@flax.struct.dataclass
class Slots:
  """What the S slots of a cache hold.

  All rows write the same slots, so that a write is one slice updated in place (a scatter, where slot = position, is a
  loop on CPU). Rows of different lengths hold other positions there, and padding fills slots that nobody sees.
  """
  positions_BS: jax.Array  # int32, the position that a slot holds, or EMPTY
  next: jax.Array          # int32, the first free slot

  def append(self, positions_BT: jax.Array, segment_ids_BT: jax.Array | None) -> 'Slots':
    """Takes the next T slots; positions of segment 0 (padding) stay EMPTY."""
    if segment_ids_BT is not None:
      positions_BT = jnp.where(segment_ids_BT == 0, EMPTY, positions_BT)
    positions_BS = jax.lax.dynamic_update_slice(self.positions_BS, positions_BT, (0, self.next))
    return Slots(positions_BS, self.next + positions_BT.shape[1])


@flax.struct.dataclass
class KVCache:
  """Keys and values of one block: [B, G, S, K], with a leading N for a block of the pattern and its repeats.

  layer: which repeat is meant; None where there is no N. (A leading axis of 1 would do, but behind the reshape that
  takes it away XLA on CPU updates twice, for the reader and for what is carried, and copies the cache in between.)
  """
  keys: jax.Array
  values: jax.Array

  @classmethod
  def empty(cls, attention: Attention, d_model: int, layers: int | None, batch: int, length: int, dtype) -> 'KVCache':
    shape = (batch, attention.kv_heads, length, attention.head_size(d_model))
    shape = shape if layers is None else (layers, *shape)
    return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

  def write(self, layer: jax.Array | None, k_BTGK: jax.Array, v_BTGK: jax.Array, slots: Slots) -> 'KVCache':
    """Stores keys and values of T tokens in the T slots that were taken last."""
    def put(cache, new_BTGK):
      new, start = new_BTGK.swapaxes(1, 2).astype(cache.dtype), (0, 0, slots.next - new_BTGK.shape[1], 0)
      axes = ('batch', 'kv_heads', None, None)
      if layer is not None:
        new, start, axes = new[None], (layer, *start), (None, *axes)
      return constrain(jax.lax.dynamic_update_slice(cache, new, start), *axes)
    return KVCache(put(self.keys, k_BTGK), put(self.values, v_BTGK))

  def read(self, layer: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Keys and values of one layer, each [B, G, S, K]."""
    take = lambda cache: cache if layer is None else jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False)
    return take(self.keys), take(self.values)


@flax.struct.dataclass
class Cache:
  """A model's cache: one KVCache for each block of the prefix and one for each block of the pattern."""
  prefix: tuple[KVCache, ...]
  pattern: tuple[KVCache, ...]
  slots: Slots

  @property
  def next(self) -> jax.Array:
    """int32, how many tokens each row has taken, padding included."""
    return self.slots.next

  def append(self, positions_BT: jax.Array, segment_ids_BT: jax.Array | None) -> 'Cache':
    """Makes room for T tokens; the blocks then write into it."""
    return self.replace(slots=self.slots.append(positions_BT, segment_ids_BT))


def init_cache(architecture: Architecture, batch: int, length: int, dtype=jnp.float32) -> Cache:
  """Room for `length` tokens a row, padding included.

  Memory: 2 x layers x kv_heads x head_dim x bytes of dtype, per row and slot.
  """
  make = lambda block, layers: KVCache.empty(block.attention, architecture.d_model, layers, batch, length, dtype)
  slots = Slots(jnp.full((batch, length), EMPTY, jnp.int32), jnp.int32(0))
  pattern = architecture.pattern if architecture.repeats else ()
  return Cache(tuple(make(block, None) for block in architecture.prefix),
               tuple(make(block, architecture.repeats) for block in pattern), slots)
