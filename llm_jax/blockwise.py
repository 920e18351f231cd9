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
def dynamic_table(signed: bool = True) -> tuple[np.ndarray, np.ndarray]:
  """The values of the 8-bit dynamic data type, and the bounds between them."""
  values = dynamic_values(signed)
  return values, (values[:-1] + values[1:]) / 2


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
    _, bounds = dynamic_table(signed)
    codes = _num_below(bounds, scaled(blocks, maxima)).astype(jnp.uint8)
    if not signed:
      codes = jnp.where(blocks > 0, jnp.maximum(codes, 1), codes)
    return cls(_as_shaped(codes, x.shape), maxima, signed)

  def dense(self) -> jax.Array:
    """The numbers that the codes stand for, float32."""
    values, _ = dynamic_table(self.signed)
    x = jnp.asarray(values)[_in_blocks(self.codes)] * self.maxima[..., None]
    return _as_shaped(x, self.codes.shape)


def _num_below(bounds: np.ndarray, x: jax.Array) -> jax.Array:
  """How many of the 255 rising bounds are below each number, int32: a binary search that is one loop over x.

  `jnp.searchsorted` holds arrays of x's size for every step, or folds them into constants.
  """
  table = jnp.asarray(bounds)
  found = jnp.where(x > table[127], 128, 0)
  for step in (64, 32, 16, 8, 4, 2, 1):
    found = jnp.where(x > table[found + (step - 1)], found + step, found)
  return found


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
