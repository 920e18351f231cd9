"""Attention of new queries over a key/value cache."""
import jax
import jax.numpy as jnp


def cached_attention(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, positions_BT: jax.Array) -> jax.Array:
  """Softmax attention in float32; the query at position p sees cache slots 0..p. Returns [B, T, H, K] in q's dtype."""
  B, T, H, K = q_BTHK.shape
  S, G = k_BSGK.shape[1:3]
  q_BTGRK = q_BTHK.reshape(B, T, G, H // G, K)
  scores = jnp.einsum('BTGRK,BSGK->BGRTS', q_BTGRK, k_BSGK, preferred_element_type=jnp.float32) * K**-0.5
  seen_BTS = jnp.arange(S) <= positions_BT[..., None]
  weights = jax.nn.softmax(jnp.where(seen_BTS[:, None, None], scores, -jnp.inf), axis=-1).astype(q_BTHK.dtype)
  return jnp.einsum('BGRTS,BSGK->BTGRK', weights, v_BSGK).reshape(B, T, H, K)
