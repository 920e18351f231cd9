"""Positions: rotary (Su et al. 2021) with their scalings to longer sequences, and sinusoids added to the embeddings.

Shapes: B batch, T time, H query heads, K head size.
"""
import math

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.model.architecture import (
  LinearScaling,
  Llama3Scaling,
  LongRoPEScaling,
  NTKScaling,
  RoPE,
  SinusoidalPositions,
  YaRNScaling,
)
from llm_jax.modules.kernels import resolve

Rotation = tuple[jax.Array, jax.Array]  # cosine and sine, each float32 [B, T, K/2]
STRIDE = 1024  # full turns are subtracted in float64 for multiples of this many positions, see `_phases`


def rotation(rope: RoPE, head_dim: int, positions_BT: jax.Array, kernels: str | None = None,
             lengths_BT: jax.Array | None = None) -> Rotation:
  """Cosine and sine of position x inverse frequency, float32 whatever the computation's dtype.

  YaRN and LongRoPE multiply both by their magnitude, so that scores are multiplied by its square (Peng et al. 2023,
  section 3.4).

  Args:
    rope: theta and scaling.
    head_dim: K, the size of the vectors that are turned; even.
    positions_BT: int32.
    kernels: 'cpu' computes them in a loop over rows, the others all at once.
    lengths_BT: int32, of the document that each position is in; only a rotation with a `switch_length` looks at them.
  """
  magnitude = rope.scaling.magnitude if isinstance(rope.scaling, YaRNScaling | LongRoPEScaling) else 1.0
  of_row = (positions_BT,)
  if rope.switch_length is not None:
    assert lengths_BT is not None, 'LongRoPE goes by the lengths of documents'
    of_row = (positions_BT, lengths_BT)

  def turn(of_row):
    phases = _phases_of(rope, head_dim, *of_row)
    return magnitude * jnp.cos(phases), magnitude * jnp.sin(phases)

  if resolve(kernels) == 'cpu':
    # XLA:CPU would compute cosine and sine again in every layer, for every head. It keeps the results of a loop.
    return jax.lax.map(turn, of_row)
  return turn(of_row)


def _phases_of(rope: RoPE, head_dim: int, positions: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
  """float32 [*positions, K/2]."""
  switch = rope.switch_length
  if switch is None or lengths is None:
    return _phases(positions, inverse_frequencies(rope, head_dim))
  short, long = (_phases(positions, inverse_frequencies(rope.at_length(length), head_dim))
                 for length in (switch, switch + 1))
  return jnp.where((lengths > switch)[..., None], long, short)


def document_lengths(positions_BT: jax.Array, segment_ids_BT: jax.Array | None) -> jax.Array:
  """int32 [B, T]: the last position of the document that each token is in, + 1; without documents, that of the row."""
  if segment_ids_BT is None:
    return jnp.broadcast_to(positions_BT.max(axis=1, keepdims=True) + 1, positions_BT.shape)
  T = positions_BT.shape[1]
  is_last_BT = jnp.pad(segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1], ((0, 0), (0, 1)), constant_values=True)
  end_BT = jax.lax.cummin(jnp.where(is_last_BT, jnp.arange(T), T), axis=1, reverse=True)
  return jnp.take_along_axis(positions_BT, end_BT, axis=1) + 1


def inverse_frequencies(rope: RoPE, head_dim: int) -> np.ndarray:
  """Radians a position, float64 [K/2]: theta^(-2i/K) (Su et al. 2021, equation 15), scaled as `rope.scaling` says; with
  a `switch_length`, those of the sequences up to it."""
  frequencies = _geometric(rope.theta, head_dim)
  match rope.scaling:
    case None:
      return frequencies
    case LinearScaling(factor):
      return frequencies / factor
    case NTKScaling(factor):  # theta factor^(K/(K-2)) in place of theta, multiplied out
      return frequencies / factor ** np.linspace(0, 1, head_dim // 2)
    case Llama3Scaling() as scaling:
      turns = scaling.original_length * frequencies / (2 * np.pi)
      low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
      kept = np.clip((turns - low) / (high - low), 0, 1)
    case YaRNScaling() as scaling:
      # In the paper the ramp is linear in the number of turns. In its code, and so in every model, it is linear in i,
      # between the i that turn beta_fast and beta_slow times, rounded outward where `truncate` says so.
      index = lambda turns: head_dim / 2 * math.log(scaling.original_length / (2 * math.pi * turns), rope.theta)
      low, high = index(scaling.beta_fast), index(scaling.beta_slow)
      if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
      low, high = max(low, 0), min(high, head_dim - 1)
      kept = 1 - np.clip((np.arange(head_dim // 2) - low) / max(high - low, 1e-3), 0, 1)
    case LongRoPEScaling() as scaling:
      return frequencies / np.array(scaling.short_factors)
  return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def sinusoids(positions: SinusoidalPositions, d_model: int, positions_BT: jax.Array) -> jax.Array:
  """float32 [B, T, d_model]: dimension 2i is sin(position / base^(2i / d_model)), dimension 2i + 1 the cosine."""
  phases = _phases(positions_BT, _geometric(positions.base, d_model))
  return jnp.stack([jnp.sin(phases), jnp.cos(phases)], -1).reshape(*positions_BT.shape, -1)[..., :d_model]


def rotate(x_BTHK: jax.Array, angles: Rotation) -> jax.Array:
  """Turns each pair (i, i + n) of the first 2 n numbers of every head, where there are n angles (half-split layout).
  Other numbers stay as they are. float32 inside, x's dtype outside."""
  cos, sin = (a[:, :, None, :] for a in angles)
  half = cos.shape[-1]
  first, second = x_BTHK[..., :half].astype(jnp.float32), x_BTHK[..., half:2 * half].astype(jnp.float32)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTHK.dtype)
  if 2 * half == x_BTHK.shape[-1]:
    return turned
  return jnp.concatenate([turned, x_BTHK[..., 2 * half:]], axis=-1)


def _geometric(base, size):
  return base ** -(np.arange(0, size, 2) / size)


def _phases(positions, frequencies):
  """position x frequency modulo full turns, float32 [*positions, K/2].

  The product of two float32 has an error of 0.008 radians at position 131,072. Here the full turns of whole strides are
  subtracted in float64 before anything is rounded; the error is 2e-4. Below STRIDE the result is the plain product.
  """
  strides, rest = (part[..., None].astype(jnp.float32) for part in jnp.divmod(positions, STRIDE))
  return strides * np.float32(STRIDE * frequencies % (2 * np.pi)) + rest * np.float32(frequencies)
