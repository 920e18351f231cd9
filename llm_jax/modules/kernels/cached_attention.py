"""Attention of new queries over the entries of a cache.

Shapes: B batch, T time, S time of the keys, H query heads, G key/value heads, J query heads per key/value head,
  Q queries of one key/value head (J x T), K head size.
"""
import jax
import jax.numpy as jnp

from llm_jax.modules.kernels.scores import MASKED, Scoring, softmax

BLOCK = 256  # queries computed at a time: bounds the scores of a long prompt to [B, H, BLOCK, S]


def cached_attention(q_BTHK: jax.Array | tuple[jax.Array, ...], k_BGSK: jax.Array | tuple[jax.Array, ...],
                     v_BGSK: jax.Array, positions_BT: jax.Array, positions_BS: jax.Array, *, window: int | None = None,
                     soft_cap: float | None = None, scale: float | None = None,
                     sinks_H: jax.Array | None = None) -> jax.Array:
  """Softmax attention in float32 over the entries whose positions are not later than the query's.

  Args:
    q_BTHK: queries; or a tuple of their parts. The products of the parts with the parts of the keys are added up.
    k_BGSK: keys, or a tuple of their parts.
    v_BGSK: values, of any head size.
    positions_BT: int32, of the queries.
    positions_BS: int32, of the entries. An entry that no query may see has a position later than every query's.
    window: how many positions a query sees, its own included; None means all.
    soft_cap: scores become soft_cap tanh(score / soft_cap).
    scale: factor of the scores; None means 1 / sqrt(K), with K the size of all parts together.
    sinks_H: see `causal_attention`.

  Returns:
    [B, T, H, size of a value] in q's dtype. A query that sees no entry (padding) gets finite numbers.
  """
  queries, keys = jax.tree.leaves(q_BTHK), jax.tree.leaves(k_BGSK)
  B, T, H, _ = queries[0].shape
  G = keys[0].shape[1]
  K = sum(q.shape[-1] for q in queries)
  scoring = Scoring(K ** -0.5 if scale is None else scale, soft_cap, window)

  def attend(queries, positions_BT):
    T = positions_BT.shape[1]  # of one block
    parts = [jnp.einsum('BGQK,BGSK->BGQS', by_group(q_BTHK), k_BGSK, preferred_element_type=jnp.float32)
             for q_BTHK, k_BGSK in zip(queries, keys, strict=True)]
    products = sum(parts, start=jnp.float32(0))
    visible_BTS = scoring.is_visible(positions_BT[..., None], positions_BS[:, None])
    visible_BQS = jnp.repeat(visible_BTS, H // G, axis=1)
    scores_BGQS = jnp.where(visible_BQS[:, None], scoring.scores(products), MASKED)
    sinks_GQ1 = None
    if sinks_H is not None:
      sinks_GQ1 = jnp.tile(sinks_H.reshape(G, H // G), (1, T))[..., None].astype(jnp.float32)
    weights_BGQS = softmax(scores_BGQS, sinks_GQ1).astype(v_BGSK.dtype)
    y_BGQK = jnp.einsum('BGQS,BGSK->BGQK', weights_BGQS, v_BGSK)
    y_BTGJK = y_BGQK.reshape(B, G, T, H // G, -1).transpose(0, 2, 1, 3, 4)
    return y_BTGJK.reshape(B, T, H, -1).astype(queries[0].dtype)

  def by_group(q_BTHK):
    q_BTGJK = q_BTHK.reshape(B, -1, G, H // G, q_BTHK.shape[-1])
    return q_BTGJK.transpose(0, 2, 1, 3, 4).reshape(B, G, -1, q_BTHK.shape[-1])

  blocks = [slice(start, start + BLOCK) for start in range(0, T, BLOCK)]
  return jnp.concatenate([attend([q[:, block] for q in queries], positions_BT[:, block]) for block in blocks], axis=1)
