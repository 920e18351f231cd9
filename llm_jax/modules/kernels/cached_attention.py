"""Attention of new queries over what a cache holds."""
import jax
import jax.numpy as jnp

from llm_jax.modules.kernels.scores import MASKED, Form

BLOCK = 256  # queries at a time: bounds the scores of a long prompt to [B, H, BLOCK, S]


def cached_attention(q_BTHK: jax.Array | tuple[jax.Array, ...], k_BGSK: jax.Array | tuple[jax.Array, ...],
                     v_BGSK: jax.Array, positions_BT: jax.Array, positions_BS: jax.Array, *, window: int | None = None,
                     soft_cap: float | None = None, scale: float | None = None) -> jax.Array:
  """Softmax attention in float32 over the entries that hold positions up to the query's.

  Args:
    q_BTHK: queries; or their parts, whose products with the parts of the keys are added.
    k_BGSK: keys, or their parts.
    v_BGSK: values, of any head size.
    positions_BT: int32, of the queries.
    positions_BS: int32, of the entries; later than every query's for those that nobody sees.
    window: how many positions a query sees, its own included; None means all.
    soft_cap: scores become soft_cap tanh(score / soft_cap).
    scale: of the scores; None means 1 / sqrt(K), K the size of all parts.

  Returns:
    [B, T, H, size of a value] in q's dtype. A query that sees nothing (padding) gets finite numbers.
  """
  queries, keys = jax.tree.leaves(q_BTHK), jax.tree.leaves(k_BGSK)
  B, T, H, _ = queries[0].shape
  G = keys[0].shape[1]
  form = Form(sum(q.shape[-1] for q in queries) ** -0.5 if scale is None else scale, soft_cap, window)

  def attend(queries, positions_BT):
    t = positions_BT.shape[1]
    products = sum(jnp.einsum('BGQK,BGSK->BGQS', by_group(q_BTHK), k_BGSK, preferred_element_type=jnp.float32)
                   for q_BTHK, k_BGSK in zip(queries, keys, strict=True))
    seen_BTS = form.sees(positions_BT[..., None], positions_BS[:, None])
    seen_BQS = jnp.repeat(seen_BTS, H // G, axis=1)
    weights = jax.nn.softmax(jnp.where(seen_BQS[:, None], form.scores(products), MASKED), axis=-1).astype(v_BGSK.dtype)
    y_BGQK = jnp.einsum('BGQS,BGSK->BGQK', weights, v_BGSK)
    y_BTHK = y_BGQK.reshape(B, G, t, H // G, -1).transpose(0, 2, 1, 3, 4).reshape(B, t, H, -1)
    return y_BTHK.astype(queries[0].dtype)

  def by_group(q_BTHK):
    q_BTGRK = q_BTHK.reshape(B, -1, G, H // G, q_BTHK.shape[-1])
    return q_BTGRK.transpose(0, 2, 1, 3, 4).reshape(B, G, -1, q_BTHK.shape[-1])

  blocks = [slice(start, start + BLOCK) for start in range(0, T, BLOCK)]
  return jnp.concatenate([attend([q[:, block] for q in queries], positions_BT[:, block]) for block in blocks], axis=1)
