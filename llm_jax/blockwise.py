"""8 bits a number in blocks that share a scale: the dynamic data type of Dettmers et al. 2022, 8-bit Optimizers via
Block-wise Quantization. Moments of an optimizer are stored so, and the scales of 4-bit weights.
"""
import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 256  # numbers that share a scale
TINY = 1.2e-38  # instead of a scale of 0: the least float32 that no processor takes for 0
NUM_EXPONENTS = 7


def dynamic_values(signed: bool = True) -> np.ndarray:
  """The 256 values of the 8-bit dynamic data type, float32, rising (section 1.3): for each of 7 powers of ten the
  middles of equal parts of [0.1, 1]. Without a sign there are twice as many parts."""
  found = [np.float32(0), np.float32(1)]
  for exponent in range(NUM_EXPONENTS):
    # Rounded to float32 where PyTorch rounds, with whose functions the published table was made.
    parts = 2**exponent if signed else 2**(exponent + 1)
    count = np.arange(parts + 1)
    first, step = np.float64(np.float32(0.1)), np.float64(np.float32(0.9) / np.float32(parts))
    edges = np.where(2 * count < parts, first + step * count, 1 - step * (parts - count)).astype(np.float32)
    middles = np.float32(10.0**(exponent - NUM_EXPONENTS + 1)) * ((edges[:-1] + edges[1:]) / np.float32(2))
    found += [*middles, *-middles] if signed else [*middles]
  return np.sort(np.array(found, np.float32))


@functools.cache
def dynamic_bounds(signed: bool = True) -> np.ndarray:
  """The 255 bounds between the values of the 8-bit dynamic data type."""
  values = dynamic_values(signed)
  return (values[:-1] + values[1:]) / 2


def scaled(blocks: jax.Array, maxima: jax.Array) -> jax.Array:
  """Each block divided by the largest absolute value in it."""
  return jnp.clip(blocks * (1 / jnp.maximum(maxima, TINY))[..., None], -1, 1)


def num_leading(shape: tuple[int, ...]) -> int:
  """How many of the first axes no block crosses: those before the last ones whose numbers fill whole blocks.

  Blocks are 256 numbers in a row of the flattened array. Where the last axes fill them, the array need not be
  flattened to be cut, so that devices which share its first axes cut their parts alone.
  """
  for axis in reversed(range(len(shape))):
    if math.prod(shape[axis:]) % BLOCK == 0:
      return axis
  return 0


@flax.struct.dataclass
class EightBits:
  """An array in the dynamic data type: 1.016 bytes a number.

  codes: uint8, of the array's shape, indices into the values.
  maxima: float32 [*leading, blocks], the largest absolute value of 256 numbers in a row; see `num_leading`.
  signed: whether there are values below 0.
  """
  codes: jax.Array
  maxima: jax.Array
  signed: bool = flax.struct.field(pytree_node=False)

  @classmethod
  def quantize(cls, x: jax.Array, signed: bool = True) -> 'EightBits':
    """x: float32. The nearest value; without a sign, what is above 0 does not become 0."""
    blocks = _in_blocks(x)
    maxima = jnp.abs(blocks).max(-1)
    codes = dynamic_codes(scaled(blocks, maxima), signed).astype(jnp.uint8)
    if not signed:
      codes = jnp.where(blocks > 0, jnp.maximum(codes, 1), codes)
    return cls(_as_shaped(codes, x.shape), maxima, signed)

  def dense(self) -> jax.Array:
    """The numbers that the codes stand for, float32."""
    x = dynamic_numbers(_in_blocks(self.codes), self.signed) * self.maxima[..., None]
    return _as_shaped(x, self.codes.shape)


# ---------------------------------------------------------------------------------------------- codes and values
# Computed, for processors read tables slowly: a TPU v5e 17 million entries in 0.1 s, by its compiler. A code's place p
# counts the parts of the powers of ten below its own; they are 2^E together, so that it is 2^E + k for the k-th of its
# own 2^E parts, and its value is slope x (p + 1/2) - shift.
def dynamic_numbers(codes: jax.Array, signed: bool) -> jax.Array:
  """The values of codes, float32: those of `dynamic_values` but for rounding."""
  zero, first = _zero_code(signed), _first_place(signed)
  place = jnp.abs(codes.astype(jnp.int32) - zero) + (first - 1)
  slopes, shifts = _lines(signed)
  slope, shift = jnp.float32(slopes[0]), jnp.float32(shifts[0])
  for exponent in range(1, NUM_EXPONENTS):
    is_above = place >= first << exponent
    slope = jnp.where(is_above, slopes[exponent], slope)
    shift = jnp.where(is_above, shifts[exponent], shift)
  value = slope * (place.astype(jnp.float32) + 0.5) - shift
  value = jnp.where(place < first, 0, value)
  value = jnp.where(place >= first << NUM_EXPONENTS, 1, value)
  return jnp.where(codes < zero, -value, value)


def dynamic_codes(x: jax.Array, signed: bool) -> jax.Array:
  """The code of the nearest value, int32, for numbers from -1 to 1, or from 0 without a sign. Where two values are as
  near but for rounding, it is either."""
  bounds = dynamic_bounds(signed)
  zero, first = _zero_code(signed), _first_place(signed)
  size = jnp.abs(x)
  slopes, shifts = _lines(signed)
  slope, shift = jnp.float32(slopes[0]), jnp.float32(shifts[0])
  least, most = first, 2 * first - 1
  for exponent in range(1, NUM_EXPONENTS):
    place = first << exponent
    is_above = size > bounds[zero + place - first]
    slope = jnp.where(is_above, slopes[exponent], slope)
    shift = jnp.where(is_above, shifts[exponent], shift)
    least = jnp.where(is_above, place, least)
    most = jnp.where(is_above, 2 * place - 1, most)
  place = jnp.clip(jnp.floor((size + shift) / slope).astype(jnp.int32), least, most)
  place = jnp.where(size > bounds[-1], first << NUM_EXPONENTS, place)
  place = jnp.where(size > bounds[zero], place, first - 1)
  distance = place - (first - 1)
  return jnp.where(x < 0, jnp.maximum(zero - distance, 0), zero + distance)  # 1 has a code, -1 has none


def _zero_code(signed: bool) -> int:
  return 127 if signed else 0


def _first_place(signed: bool) -> int:
  """The place of the least value above 0: how many parts the least power of ten has."""
  return 1 if signed else 2


def _lines(signed: bool) -> tuple[list[float], list[float]]:
  """The slope and the shift of each power of ten."""
  powers = [10.0**(exponent - NUM_EXPONENTS + 1) for exponent in range(NUM_EXPONENTS)]
  slopes = [0.9 * power / (_first_place(signed) << exponent) for exponent, power in enumerate(powers)]
  return slopes, [0.8 * power for power in powers]


# ---------------------------------------------------------------------------------------------- blocks
def _in_blocks(x: jax.Array) -> jax.Array:
  """[*leading, blocks, 256], filled up with zeros."""
  leading = x.shape[:num_leading(x.shape)]
  x = x.reshape(*leading, -1)
  x = jnp.pad(x, [(0, 0)] * len(leading) + [(0, -x.shape[-1] % BLOCK)])
  return x.reshape(*leading, -1, BLOCK)


def _as_shaped(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """The array of `shape` that was cut into these blocks."""
  leading = shape[:num_leading(shape)]
  size = math.prod(shape[len(leading):])
  return blocks.reshape(*leading, -1)[..., :size].reshape(shape)
