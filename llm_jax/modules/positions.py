"""Rotary positions (Su et al. 2021, section 3.4.2), half-split: dimension i turns together with i + K/2."""
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.architecture import RoPE

Rotation = tuple[jax.Array, jax.Array]  # cosine and sine, each float32 [batch, time, K/2]


def rotation(rope: RoPE, head_dim: int, positions_BT: jax.Array) -> Rotation:
  """The angles position / base^(2i/K), float32 whatever the computation's dtype."""
  frequencies = 1.0 / rope.base ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
  phases = positions_BT[..., None].astype(jnp.float32) * frequencies.astype(np.float32)
  return jnp.cos(phases), jnp.sin(phases)


def rotate(x_BTHK: jax.Array, angles: Rotation) -> jax.Array:
  """Turns each pair (i, i + K/2) of every head; float32 inside, x's dtype outside."""
  cos, sin = (a[:, :, None, :] for a in angles)
  first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTHK.dtype)
