"""The score of a query and a key, and which keys a query sees: shared by all implementations of attention.

Shapes: B batch, T time, S time of the keys.
"""
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

Arrays = TypeVar('Arrays', bound=tuple)

MASKED = -1e30  # finite: exp(MASKED) is exactly 0, and MASKED - MASKED is not NaN


class Scoring(NamedTuple):
  """The query at position p sees the keys at p - window + 1 .. p, with scores soft_cap tanh(scale q k' / soft_cap)."""
  scale: float
  soft_cap: float | None = None
  window: int | None = None

  def scores(self, products: jax.Array) -> jax.Array:
    """The scores, from the products q k'."""
    scores = products * self.scale
    if self.soft_cap is None:
      return scores
    return self.soft_cap * jnp.tanh(scores / self.soft_cap)

  def derivative(self, scores: jax.Array) -> jax.Array | float:
    """d score / d (q k'), from the scores."""
    if self.soft_cap is None:
      return self.scale
    return self.scale * (1 - jnp.square(scores / self.soft_cap))

  def is_visible(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """bool: whether the query at position `queries` sees the key at position `keys`; the two broadcast."""
    causal = keys <= queries
    if self.window is None:
      return causal
    return causal & (keys > queries - self.window)

  def first_key(self, query: int) -> int:
    """The earliest position that the query at position `query` sees."""
    return 0 if self.window is None else max(0, query - self.window + 1)


def softmax(scores: jax.Array, sinks: jax.Array | None = None) -> jax.Array:
  """Over the last axis. `sinks`, of size 1 there, are scores that take weight and are not in the result."""
  if sinks is None:
    return jax.nn.softmax(scores, axis=-1)
  top = jax.lax.stop_gradient(jnp.maximum(scores.max(-1, keepdims=True), sinks))
  weights = jnp.exp(scores - top)
  return weights / (weights.sum(-1, keepdims=True) + jnp.exp(sinks - top))


def same_segment(rows_BT: jax.Array, columns_BS: jax.Array) -> jax.Array:
  """bool [B, T, S]: whether two positions belong to one document."""
  return rows_BT[:, :, None] == columns_BS[:, None, :]


def pad_time(multiple: int, arrays_BT: Arrays) -> Arrays:
  """Arrays [B, T, ...] padded with zeros at the end of T to a multiple of `multiple`; None stays None.

  No query sees the padding, because it comes after all of them.
  """
  def pad(x: jax.Array) -> jax.Array:
    other_axes = ((0, 0),) * (x.ndim - 2)
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), *other_axes))

  return jax.tree.map(pad, arrays_BT)
