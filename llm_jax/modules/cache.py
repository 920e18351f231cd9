"""What a decoder remembers of the tokens it has read: plain pytrees, passed in and returned.

Three kinds, by the type of a block's attention, mixed freely in one model:

  Attention                keys and values of every token
  Attention with `window`  a rolling buffer: a new token takes the slot of one that no query sees any more, so memory
                           does not grow with the length (Jiang et al. 2023, Mistral 7B, section 2)
  LatentAttention          one compressed vector and one rotary key a token, whatever the number of heads (DeepSeek-V2,
                           section 2.1)
"""
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.config.model.architecture import AnyAttention, AnyBlock, Architecture, Attention, LatentAttention
from llm_jax.config.model.count import blocks
from llm_jax.sharding.rules import constrain

EMPTY = jnp.iinfo(jnp.int32).max  # later than every position, so no query sees it


@flax.struct.dataclass
class Slots:
  """Where the T tokens of one forward pass go in the caches of one capacity S, and what their queries read.

  All rows write the same slots, so that a write is one slice updated in place (a scatter, where slot = position, is a
  loop on CPU). Rows of different lengths hold other positions there, and padding fills slots that nobody sees.

  start: int32, the slot of the first token.
  positions_BR: int32, the position of each entry that queries read, EMPTY for none.
  kept_S: None where the T tokens are one slice of the cache; queries then read its S slots. Several tokens in a cache
    that rolls may wrap, or push out what the first of them sees: there queries read the S slots as they were and the T
    tokens behind them, of which slot s then keeps entry kept_S[s].
  """
  start: jax.Array
  positions_BR: jax.Array
  kept_S: jax.Array | None


@flax.struct.dataclass
class KVCache:
  """Two arrays [B, G, S, size] of one block, with a leading N for a block of the pattern and its repeats: keys and
  values, or (LatentAttention, G = 1) compressed vectors and rotary keys.

  No axis of 1 is kept: B and G are left out where they are 1, as N is for a block of the prefix (`layer` None). Behind
  the reshape that takes such an axis away XLA on CPU updates twice, for the reader and for what is carried, and copies
  the cache in between, in every step.
  """
  parts: tuple[jax.Array, jax.Array]

  @property
  def capacity(self) -> int:
    """S, how many tokens there is room for."""
    return self.parts[0].shape[-2]

  def update(self, layer: jax.Array | None, new_BTGK: tuple[jax.Array, jax.Array], slots: Slots
             ) -> tuple['KVCache', tuple[jax.Array, jax.Array]]:
    """Stores T tokens; returns also what their queries read, each [B, G, R, size]."""
    written, read = zip(*(_update(part, layer, new, slots)
                          for part, new in zip(self.parts, new_BTGK, strict=True)), strict=True)
    return KVCache(written), read


def _update(part, layer, new_BTGK, slots):
  B, _, G, _ = new_BTGK.shape
  sizes = [size for size in (B, G) if size > 1]
  axes = [name for name, size in (('batch', B), ('kv_heads', G)) if size > 1] + [None, None]
  take = lambda part: part if layer is None else jax.lax.dynamic_index_in_dim(part, layer, keepdims=False)
  read = lambda part: take(part).reshape(B, G, *part.shape[-2:])
  new, start = new_BTGK.swapaxes(1, 2).astype(part.dtype), slots.start
  if slots.kept_S is not None:
    read_BGRK = jnp.concatenate([read(part), new], axis=2)
    new, start = jnp.take(read_BGRK, slots.kept_S, axis=2, mode='clip'), 0
  new, index = new.reshape(*sizes, *new.shape[2:]), [0 for _ in sizes] + [start, 0]
  if layer is not None:
    new, index, axes = new[None], [layer, *index], [None, *axes]
  part = constrain(jax.lax.dynamic_update_slice(part, new, index), *axes)
  return part, read(part) if slots.kept_S is None else read_BGRK


@flax.struct.dataclass
class Cache:
  """A model's cache: a KVCache for each block of the prefix and for each block of the pattern.

  positions: by capacity, int32 [B, S], the position that each slot holds, or EMPTY: all layers share it.
  next: int32, how many tokens each row has taken, padding included. Token n stands in slot n modulo the capacity.
  length: how many tokens a row may take.
  """
  prefix: tuple[KVCache, ...]
  pattern: tuple[KVCache, ...]
  positions: dict[int, jax.Array]
  next: jax.Array
  length: int = flax.struct.field(pytree_node=False)

  def append(self, positions_BT: jax.Array, segment_ids_BT: jax.Array | None) -> tuple['Cache', dict[int, Slots]]:
    """Makes room for T tokens, those of segment 0 being padding; the blocks then write them, told where by capacity.

    Padding belongs on the left of a row: in a cache that rolls, padding on the right would push out tokens.
    """
    if segment_ids_BT is not None:
      positions_BT = jnp.where(segment_ids_BT == 0, EMPTY, positions_BT)
    positions, slots = {}, {}
    for capacity, old_BS in self.positions.items():
      positions[capacity], slots[capacity] = self._take_slots(capacity, old_BS, positions_BT)
    return self.replace(positions=positions, next=self.next + positions_BT.shape[1]), slots

  def _take_slots(self, S: int, old_BS: jax.Array, new_BT: jax.Array) -> tuple[jax.Array, Slots]:
    T, rolls = new_BT.shape[1], S < self.length
    if rolls and T > 1:
      slot_S, last = jnp.arange(S), self.next + T - 1
      newest_S = last - (last - slot_S) % S  # the number of the last token that stands in each slot
      kept_S = jnp.where(newest_S >= self.next, S + newest_S - self.next, slot_S)
      read_BR = jnp.concatenate([old_BS, new_BT], axis=1)
      return jnp.take(read_BR, kept_S, axis=1, mode='clip'), Slots(jnp.int32(0), read_BR, kept_S)
    start = self.next % S if rolls else self.next
    positions_BS = jax.lax.dynamic_update_slice(old_BS, new_BT, (0, start))
    return positions_BS, Slots(start, positions_BS, None)

  def rewind(self, count: jax.Array | int) -> 'Cache':
    """Forgets the newest `count` tokens of every row (int32, may be traced).

    A cache that rolls must have been made with a `lookahead` of at least `count`: what they pushed out is gone.
    """
    forget = lambda S, positions_BS: jnp.where((self.next - 1 - jnp.arange(S)) % S < count, EMPTY, positions_BS)
    positions = {S: forget(S, positions_BS) for S, positions_BS in self.positions.items()}
    return self.replace(positions=positions, next=self.next - jnp.asarray(count, jnp.int32))

  def select(self, rows_B: jax.Array) -> 'Cache':
    """The cache whose row b is row rows_B[b] of this one (int32; there may be more rows than here, or fewer)."""
    alone = len(next(iter(self.positions.values()))) == 1
    take = lambda x, axis: jnp.take(x, rows_B, axis=axis, mode='clip')

    def take_rows(part, axis):
      part = take(jnp.expand_dims(part, axis) if alone else part, axis)
      return part.squeeze(axis) if len(rows_B) == 1 else part

    parts = lambda caches, axis: jax.tree.map(lambda part: take_rows(part, axis), caches)
    positions = {S: take(positions_BS, 0) for S, positions_BS in self.positions.items()}
    return self.replace(prefix=parts(self.prefix, 0), pattern=parts(self.pattern, 1), positions=positions)


def init_cache(architecture: Architecture, batch: int, length: int, dtype=jnp.float32, lookahead: int = 0) -> Cache:
  """Room for `length` tokens a row, padding included; a block with a window keeps the last window + lookahead.

  lookahead: how many of the newest tokens may be taken back with `rewind`.   Memory: see `cache_bytes`.
  """
  def make(block: AnyBlock, layers: int | None) -> KVCache:
    capacity, stacked = _capacity(block.attention, length, lookahead), () if layers is None else (layers,)
    shape = lambda heads, size: (*stacked, *(n for n in (batch, heads) if n > 1), capacity, size)
    return KVCache(tuple(jnp.zeros(shape(*entry), dtype) for entry in _entries(block.attention, architecture.d_model)))

  capacities = {_capacity(block.attention, length, lookahead) for block in blocks(architecture)}
  positions = {capacity: jnp.full((batch, capacity), EMPTY, jnp.int32) for capacity in capacities}
  pattern = architecture.pattern if architecture.repeats else ()
  return Cache(tuple(make(block, None) for block in architecture.prefix),
               tuple(make(block, architecture.repeats) for block in pattern), positions, jnp.int32(0), length)


class CacheBytes(NamedTuple):
  """per_token: what one more token of one row takes, as long as no window is full.   total: of all buffers."""
  per_token: int
  total: int


def cache_bytes(architecture: Architecture, batch: int, length: int, dtype=jnp.float32, lookahead: int = 0
                ) -> CacheBytes:
  """The memory of `init_cache`'s keys, values and latents, without making it.

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
  """(heads, size) of each of the two things that are kept of a token."""
  match attention:
    case Attention():
      entry = (attention.kv_heads, attention.head_size(d_model))
      return entry, entry
    case LatentAttention():
      return (1, attention.kv_rank), (1, attention.rope_dim)


def _capacity(attention: AnyAttention, length: int, lookahead: int) -> int:
  match attention:
    case Attention(window=int(window)):
      return min(length, window + lookahead)
    case _:
      return length
