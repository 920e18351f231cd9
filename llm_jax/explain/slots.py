"""Which token each slot of a model's cache holds, token by token, as the cache itself says.

Shapes: T time, U cache slots.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.model.architecture import Architecture
from llm_jax.decode.unroll import unroll_config
from llm_jax.modules.cache import EMPTY, Cache, init_cache


class SlotTable(NamedTuple):
  """The caches of one capacity.

  layers: numbers of the layers that have such a cache, from 0.
  positions_TU: int32, what each slot holds after each token; -1 for nothing.
  """
  layers: tuple[int, ...]
  positions_TU: np.ndarray


def cache_slots(config: Architecture, length: int) -> tuple[SlotTable, ...]:
  """The slots while `length` tokens are read one after the other, the smallest capacity first."""
  positions = jax.device_get(_fill(unroll_config(config), length))
  shapes = jax.eval_shape(functools.partial(init_cache, unroll_config(config), 1, length))
  capacities = [block.capacity for block in shapes.prefix]
  tables: list[SlotTable] = []
  for capacity in sorted(set(capacities)):
    layers = tuple(i for i, each in enumerate(capacities) if each == capacity)
    held = positions[capacity][:, 0]
    tables.append(SlotTable(layers, np.where(held == EMPTY, -1, held)))
  return tuple(tables)


@functools.partial(jax.jit, static_argnames=('config', 'length'))
def _fill(config: Architecture, length: int) -> dict[int, jax.Array]:
  """By capacity, [T, 1, U]: the positions in the slots after each token."""
  def take(cache: Cache, position: jax.Array) -> tuple[Cache, dict[int, jax.Array]]:
    cache, _ = cache.append(position[None, None], None)
    return cache, cache.positions

  _, positions = jax.lax.scan(take, init_cache(config, 1, length), jnp.arange(length, dtype=jnp.int32))
  return positions
