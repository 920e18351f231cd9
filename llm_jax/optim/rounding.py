"""Parameters in bfloat16 that are updated in float32, and stochastic rounding back: up or down with probabilities that
make the mean exact.

To the nearest bfloat16 an update below 2^-9 of a number would be lost, and so would all that follow it.
"""
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax import paths


def widened(tree: Any) -> Any:
  """The tree with float32 in place of bfloat16."""
  return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf, tree)


def rounded_like(old: Any, new: Any, key: jax.Array) -> Any:
  """`new`, rounded stochastically where `old` is bfloat16. The bits are a function of the key and the leaf's path."""
  def round_leaf(path: tuple[Any, ...], old: jax.Array, new: jax.Array) -> jax.Array:
    return round_stochastically(new, key_of(key, paths.name(path))) if old.dtype == jnp.bfloat16 else new

  return jax.tree_util.tree_map_with_path(round_leaf, old, new)


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
  """x: float32. One of its two neighbours in bfloat16, each with the probability of its nearness; x where x is one."""
  bits = random_bits(key, x.shape) >> 16
  # bfloat16 is the upper half of float32: a random lower half is added, and what carries over rounds up.
  raw = jax.lax.bitcast_convert_type(x, jnp.uint32) + bits
  rounded = jax.lax.bitcast_convert_type((raw >> 16).astype(jnp.uint16), jnp.bfloat16)
  return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """uint32, a function of the key and of each number's place: MurmurHash3's finaliser, twice.

  It is one loop over the numbers. `jax.random.bits` takes several times their memory on a CPU.
  """
  words = jax.random.bits(key, (2,), jnp.uint32)
  place = jnp.zeros(shape, jnp.uint32)
  for axis, size in enumerate(shape):
    place = place * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
  return _mixed(_mixed(place ^ words[0]) ^ words[1])


def _mixed(x: jax.Array) -> jax.Array:
  x = (x ^ (x >> 16)) * jnp.uint32(0x85ebca6b)
  x = (x ^ (x >> 13)) * jnp.uint32(0xc2b2ae35)
  return x ^ (x >> 16)


def key_of(key: jax.Array, path: str) -> jax.Array:
  """A key of its own for the array at `path`, the same in every process and on every mesh."""
  return jax.random.fold_in(key, zlib.crc32(path.encode()))
