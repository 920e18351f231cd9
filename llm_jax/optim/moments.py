"""Moments of an optimizer that are stored in fewer bits than they are computed in."""
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from llm_jax import paths
from llm_jax.blockwise import EightBits
from llm_jax.optim.rounding import key_of, round_stochastically

MOMENT = re.compile(r'(^|/)(mu|nu)/')  # as optax calls the first and the second
SECOND_MOMENT = re.compile(r'(^|/)nu/')  # never below 0
MIN_SIZE = 4_096  # numbers of the smallest array that is stored in 8 bits, as in bitsandbytes


class StoredMoments(NamedTuple):
  """updates: how many there were, int32: what random rounding goes by.   state: the optimizer's."""
  updates: jax.Array
  state: Any


def with_stored_moments(optimizer: optax.GradientTransformation, kind: str) -> optax.GradientTransformation:
  """The optimizer, whose moments are expanded to float32 for an update and stored as `kind` after it.

  kind: 'float32', 'bfloat16' or 'int8'.
  """
  if kind == 'float32':
    return optimizer

  def init(params: Any) -> StoredMoments:
    count = jnp.zeros((), jnp.int32)
    return StoredMoments(count, store(optimizer.init(params), kind, count))

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    found, exact = optimizer.update(updates, expand(state.state), params)
    count = state.updates + 1
    return found, StoredMoments(count, store(exact, kind, count))

  return optax.GradientTransformation(init, update)


def store(state: Any, kind: str, updates: jax.Array) -> Any:
  """The state with its float32 moments stored as `kind`. The random bits go by the number of the update and the
  moment's path."""
  key = jax.random.fold_in(jax.random.key(0), updates)

  def store_leaf(path: str, leaf: jax.Array) -> Any:
    if not MOMENT.search(path):
      return leaf
    if kind == 'bfloat16':
      return round_stochastically(leaf, key_of(key, path))
    is_large = leaf.size >= MIN_SIZE
    return EightBits.quantize(leaf, signed=not SECOND_MOMENT.search(path)) if is_large else leaf

  return paths.map_named(store_leaf, state)


def expand(state: Any) -> Any:
  """The state with float32 moments."""
  def expand_leaf(leaf: Any) -> jax.Array:
    if isinstance(leaf, EightBits):
      return leaf.dense()
    return leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf

  return jax.tree.map(expand_leaf, state, is_leaf=lambda leaf: isinstance(leaf, EightBits))
