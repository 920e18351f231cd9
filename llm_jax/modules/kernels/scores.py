"""The score of a query and a key: what every form of attention agrees on."""
from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that exp() of it is exactly 0 and no difference of two is NaN


class Form(NamedTuple):
  """The query at position p scores soft_cap tanh(scale q k' / soft_cap) with the keys at p - window + 1 .. p."""
  scale: float
  soft_cap: float | None = None
  window: int | None = None

  def scores(self, products: jax.Array) -> jax.Array:
    """Scores of the products q k'."""
    scores = products * self.scale
    return scores if self.soft_cap is None else self.soft_cap * jnp.tanh(scores / self.soft_cap)

  def slopes(self, scores: jax.Array) -> jax.Array | float:
    """d score / d q k', from the scores."""
    return self.scale if self.soft_cap is None else self.scale * (1 - jnp.square(scores / self.soft_cap))

  def sees(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Whether the query at a position sees the key at another."""
    seen = keys <= queries
    return seen if self.window is None else seen & (keys > queries - self.window)

  def first_key(self, query: int) -> int:
    """The earliest position that the query at position `query` sees."""
    return 0 if self.window is None else max(0, query - self.window + 1)


def same_segment(rows_BT: jax.Array, columns_BS: jax.Array) -> jax.Array:
  """bool [B, T, S]: whether two positions belong to one document."""
  return rows_BT[:, :, None] == columns_BS[:, None, :]



def pad_time(multiple: int, *arrays_BT: jax.Array | None) -> tuple[jax.Array | None, ...]:
  """[B, T, ...] padded with zeros to a multiple in T. What is padded stands behind every query, and none sees it."""
  pad = lambda x: jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), *((0, 0),) * (x.ndim - 2)))
  return tuple(x if x is None else pad(x) for x in arrays_BT)
