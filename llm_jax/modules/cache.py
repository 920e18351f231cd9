"""The cache of a decoder: what it keeps of the tokens it has read, as plain pytrees that are passed in and returned.

The type of a block's attention decides what is kept; one model may mix all three kinds:

  Attention                keys and values of every token
  Attention with `window`  keys and values in a rolling buffer: a new token takes the slot of one that no query sees any
                           more, so memory does not grow with the length (Jiang et al. 2023, Mistral 7B, section 2)
  LatentAttention          one compressed vector and one rotary key per token, however many heads there are
                           (DeepSeek-V2, section 2.1)

Shapes: B batch, T time, S time of the keys, U cache slots, G key/value heads, K head size.
"""
import dataclasses
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.config.model.architecture import AnyAttention, AnyBlock, Architecture, Attention, LatentAttention
from llm_jax.config.model.count import blocks
from llm_jax.sharding.rules import constrain

EMPTY = jnp.iinfo(jnp.int32).max  # a position later than all others, so that no query sees it


@flax.struct.dataclass
class Slots:
  """Where the caches of one capacity U store the T tokens of one forward pass, and which entries their queries read.

  All rows write to the same slots, so that a write is one slice updated in place. (If the slot were the position, a
  write would be a scatter, which is a loop on CPU.) Rows of different lengths hold different positions in a slot, and
  padding fills slots that no query sees.

  start: int32, the slot of the first token.
  positions_BS: int32, the position of each entry that the queries read, EMPTY for none.
  kept_U: None where the T tokens are written as one slice; the queries then read the U slots of the cache. But several
    tokens in a rolling cache may wrap around, or overwrite an entry that the first of them sees. There the queries read
    S = U + T entries, the old slots followed by the new tokens, and slot u then keeps entry kept_U[u].
  """
  start: jax.Array
  positions_BS: jax.Array
  kept_U: jax.Array | None


@flax.struct.dataclass
class KVCache:
  """Two arrays of one block, each [B, G, U, size]; those of a block of the pattern have an axis of its layers in front.

  For Attention they hold keys and values; for LatentAttention (G = 1) compressed vectors and rotary keys. An axis of
  size 1 is left out (B, G, and the layers of a block of the prefix, whose `layer` is None): after the reshape that
  would remove it, XLA on CPU updates the cache twice and copies it in every step.
  """
  arrays: tuple[jax.Array, jax.Array]

  @property
  def capacity(self) -> int:
    """U, the number of slots."""
    return self.arrays[0].shape[-2]

  def update(self, layer: jax.Array | None, new_BTGK: tuple[jax.Array, jax.Array], slots: Slots
             ) -> tuple['KVCache', tuple[jax.Array, jax.Array]]:
    """Stores T tokens. Returns the cache, and the two arrays [B, G, S, size] that their queries read."""
    written, read = [], []
    for array, new in zip(self.arrays, new_BTGK, strict=True):
      array, read_BGSK = _update(array, layer, new, slots)
      written.append(array)
      read.append(read_BGSK)
    return KVCache(tuple(written)), tuple(read)


def _update(array, layer, new_BTGK, slots):
  B, _, G, _ = new_BTGK.shape
  kept_axes = [(name, size) for name, size in (('batch', B), ('kv_heads', G)) if size > 1]
  names = [name for name, _ in kept_axes]
  sizes = [size for _, size in kept_axes]

  def read(array):
    of_layer = array if layer is None else jax.lax.dynamic_index_in_dim(array, layer, keepdims=False)
    return of_layer.reshape(B, G, *array.shape[-2:])

  new = new_BTGK.swapaxes(1, 2).astype(array.dtype)
  start = slots.start
  if slots.kept_U is not None:
    read_BGSK = jnp.concatenate([read(array), new], axis=2)
    new = jnp.take(read_BGSK, slots.kept_U, axis=2, mode='clip')
    start = 0
  new = new.reshape(*sizes, *new.shape[2:])
  index = [*(0 for _ in sizes), start, 0]
  logical = [*names, None, None]
  if layer is not None:
    new, index, logical = new[None], [layer, *index], [None, *logical]
  array = constrain(jax.lax.dynamic_update_slice(array, new, index), *logical)
  return array, read(array) if slots.kept_U is None else read_BGSK


@flax.struct.dataclass
class Cache:
  """A model's cache: a KVCache for each block of the prefix and for each block of the pattern.

  positions: by capacity, int32 [B, U], the position that each slot holds, or EMPTY. All layers share it.
  next: int32, how many tokens each row has taken, padding included. Token n is in slot n modulo the capacity.
  length: how many tokens a row may take.
  """
  prefix: tuple[KVCache, ...]
  pattern: tuple[KVCache, ...]
  positions: dict[int, jax.Array]
  next: jax.Array
  length: int = flax.struct.field(pytree_node=False)

  def append(self, positions_BT: jax.Array, segment_ids_BT: jax.Array | None) -> tuple['Cache', dict[int, Slots]]:
    """Assigns slots to T tokens, those of segment 0 being padding. Returns the cache, whose blocks have not been
    written yet, and by capacity the slots to write to.

    Padding belongs on the left of a row: padding on the right would overwrite tokens of a rolling cache.
    """
    if segment_ids_BT is not None:
      positions_BT = jnp.where(segment_ids_BT == 0, EMPTY, positions_BT)
    positions, slots = {}, {}
    for capacity, old_BU in self.positions.items():
      positions[capacity], slots[capacity] = self._take_slots(capacity, old_BU, positions_BT)
    return dataclasses.replace(self, positions=positions, next=self.next + positions_BT.shape[1]), slots

  def _take_slots(self, U: int, old_BU: jax.Array, new_BT: jax.Array) -> tuple[jax.Array, Slots]:
    """The positions of all slots after T tokens, and the slots of these tokens."""
    T = new_BT.shape[1]
    rolls = U < self.length
    if rolls and T > 1:
      slot_U = jnp.arange(U)
      last = self.next + T - 1
      newest_U = last - (last - slot_U) % U  # the number of the last token that each slot gets
      kept_U = jnp.where(newest_U >= self.next, U + newest_U - self.next, slot_U)
      read_BS = jnp.concatenate([old_BU, new_BT], axis=1)
      return jnp.take(read_BS, kept_U, axis=1, mode='clip'), Slots(jnp.int32(0), read_BS, kept_U)
    start = self.next % U if rolls else self.next
    positions_BU = jax.lax.dynamic_update_slice(old_BU, new_BT, (0, start))
    return positions_BU, Slots(start, positions_BU, None)

  def rewind(self, count: jax.Array | int) -> 'Cache':
    """Forgets the newest `count` tokens of every row (int32, may be traced).

    A rolling cache must have been made with a `lookahead` of at least `count`, because the entries that the forgotten
    tokens overwrote are gone.
    """
    def forget(U: int, positions_BU: jax.Array) -> jax.Array:
      age_U = (self.next - 1 - jnp.arange(U)) % U
      return jnp.where(age_U < count, EMPTY, positions_BU)

    positions = {U: forget(U, positions_BU) for U, positions_BU in self.positions.items()}
    return dataclasses.replace(self, positions=positions, next=self.next - jnp.asarray(count, jnp.int32))

  def select(self, rows_B: jax.Array) -> 'Cache':
    """The cache whose row b is row rows_B[b] of this one (int32). It may have more rows than this one, or fewer."""
    has_one_row = len(next(iter(self.positions.values()))) == 1
    take = lambda x, axis: jnp.take(x, rows_B, axis=axis, mode='clip')

    def take_rows(array, axis):
      array = take(jnp.expand_dims(array, axis) if has_one_row else array, axis)
      return array.squeeze(axis) if len(rows_B) == 1 else array

    of_all = lambda caches, axis: jax.tree.map(lambda array: take_rows(array, axis), caches)
    positions = {U: take(positions_BU, 0) for U, positions_BU in self.positions.items()}
    return dataclasses.replace(
      self, prefix=of_all(self.prefix, 0), pattern=of_all(self.pattern, 1), positions=positions
    )


def init_cache(architecture: Architecture, batch: int, length: int, dtype=jnp.float32, lookahead: int = 0) -> Cache:
  """An empty cache of `length` tokens per row, padding included.

  A block with a window keeps only the last window + lookahead tokens. For the memory see `cache_bytes`.

  Args:
    lookahead: how many of the newest tokens `rewind` may forget.
  """
  def make(block: AnyBlock, layers: int | None) -> KVCache:
    capacity = _capacity(block.attention, length, lookahead)
    stacked = () if layers is None else (layers,)
    arrays = []
    for heads, size in _entries(block.attention, architecture.d_model):
      kept_axes = [n for n in (batch, heads) if n > 1]
      arrays.append(jnp.zeros((*stacked, *kept_axes, capacity, size), dtype))
    return KVCache(tuple(arrays))

  capacities = {_capacity(block.attention, length, lookahead) for block in blocks(architecture)}
  positions = {capacity: jnp.full((batch, capacity), EMPTY, jnp.int32) for capacity in capacities}
  pattern = architecture.pattern if architecture.repeats else ()
  return Cache(tuple(make(block, None) for block in architecture.prefix),
               tuple(make(block, architecture.repeats) for block in pattern), positions, jnp.int32(0), length)


class CacheBytes(NamedTuple):
  """per_token: bytes of one more token of one row while no window is full.   total: bytes of all arrays."""
  per_token: int
  total: int


def cache_bytes(architecture: Architecture, batch: int, length: int, dtype=jnp.float32, lookahead: int = 0
                ) -> CacheBytes:
  """The memory of `init_cache`'s keys, values and latents, without making them.

  A layer takes, per row and slot, 2 x kv_heads x head_dim numbers, or kv_rank + rope_dim with LatentAttention; it has
  `length` slots, or min(length, window + lookahead).
  """
  per_token = total = 0
  for block in blocks(architecture):
    numbers = sum(heads * size for heads, size in _entries(block.attention, architecture.d_model))
    slot = numbers * jnp.dtype(dtype).itemsize
    per_token += slot
    total += slot * batch * _capacity(block.attention, length, lookahead)
  return CacheBytes(per_token, total)


def _entries(attention: AnyAttention, d_model: int) -> tuple[tuple[int, int], tuple[int, int]]:
  """(heads, size) of each of the two vectors that are kept of a token."""
  match attention:
    case Attention():
      entry = (attention.kv_heads, attention.head_size(d_model))
      return entry, entry
    case LatentAttention():
      return (1, attention.kv_rank), (1, attention.rope_dim)


def _capacity(attention: AnyAttention, length: int, lookahead: int) -> int:
  match attention:
    case Attention():
      return length if attention.window is None else min(length, attention.window + lookahead)
    case LatentAttention():
      return length
