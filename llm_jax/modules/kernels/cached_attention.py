"""Attention of new queries over a key/value cache."""
import jax
import jax.numpy as jnp

BLOCK = 256  # queries at a time: bounds the scores of a long prompt to [B, H, BLOCK, S]


def cached_attention(q_BTHK: jax.Array, k_BGSK: jax.Array, v_BGSK: jax.Array, positions_BT: jax.Array,
                     positions_BS: jax.Array, *, window: int | None = None, soft_cap: float | None = None,
                     scale: float | None = None) -> jax.Array:
  """Softmax attention in float32; the query at position p sees the slots that hold positions up to p.

  Every query must see a slot at least. Returns [B, T, H, K] in q's dtype.
  """
  B, T, H, K = q_BTHK.shape
  G = k_BGSK.shape[1]

  def attend(q_BTHK, positions_BT):
    q_BGQK = q_BTHK.reshape(B, -1, G, H // G, K).transpose(0, 2, 1, 3, 4).reshape(B, G, -1, K)
    scores = jnp.einsum('BGQK,BGSK->BGQS', q_BGQK, k_BGSK, preferred_element_type=jnp.float32) * K**-0.5
    seen_BQS = jnp.repeat(positions_BS[:, None] <= positions_BT[..., None], H // G, axis=1)
    weights = jax.nn.softmax(jnp.where(seen_BQS[:, None], scores, -jnp.inf), axis=-1).astype(v_BGSK.dtype)
    y_BGQK = jnp.einsum('BGQS,BGSK->BGQK', weights, v_BGSK)
    return y_BGQK.reshape(B, G, -1, H // G, K).transpose(0, 2, 1, 3, 4).reshape(B, -1, H, K).astype(q_BTHK.dtype)

  blocks = [slice(start, start + BLOCK) for start in range(0, T, BLOCK)]
  return jnp.concatenate([attend(q_BTHK[:, block], positions_BT[:, block]) for block in blocks], axis=1)
