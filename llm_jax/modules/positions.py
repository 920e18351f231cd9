"""Rotary positions (Su et al. 2021, section 3.4.2), half-split: dimension i turns together with i + K/2."""
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.architecture import RoPE, SinusoidalPositions
from llm_jax.modules.kernels import resolve

Rotation = tuple[jax.Array, jax.Array]  # cosine and sine, each float32 [batch, time, K/2]


def rotation(rope: RoPE, head_dim: int, positions_BT: jax.Array, kernels: str | None = None) -> Rotation:
  """The angles position / base^(2i/K), float32 whatever the computation's dtype."""
  frequencies = 1.0 / rope.base ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)

  def turn(positions):
    phases = positions[..., None].astype(jnp.float32) * frequencies.astype(np.float32)
    return jnp.cos(phases), jnp.sin(phases)

  # XLA:CPU would compute cosine and sine again in every layer, for every head; it keeps what a loop has made.
  return jax.lax.map(turn, positions_BT) if resolve(kernels) == 'cpu' else turn(positions_BT)


def sinusoids(positions: SinusoidalPositions, d_model: int, positions_BT: jax.Array) -> jax.Array:
  """float32 [batch, time, d_model]: dimension 2i holds sin(position / base^(2i / D)), 2i + 1 the cosine."""
  frequencies = positions.base ** (-np.arange(0, d_model, 2, dtype=np.float32) / d_model)
  phases = positions_BT[..., None].astype(jnp.float32) * frequencies
  return jnp.stack([jnp.sin(phases), jnp.cos(phases)], -1).reshape(*positions_BT.shape, -1)[..., :d_model]


def rotate(x_BTHK: jax.Array, angles: Rotation) -> jax.Array:
  """Turns each pair (i, i + K/2) of every head; float32 inside, x's dtype outside."""
  cos, sin = (a[:, :, None, :] for a in angles)
  first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTHK.dtype)
