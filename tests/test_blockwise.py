"""8 bits in blocks against the functions of `bitsandbytes` on the CPU."""
import bitsandbytes.functional as bitsandbytes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from llm_jax.blockwise import BLOCK, EightBits, dynamic_values, num_leading

SHAPES = ((64, 96), (3, 40, 4, 64), (7, 9), (3, 300), (256,), (5, 512))


@pytest.mark.parametrize('signed', (True, False))
def test_the_values_are_bitsandbytes(signed):
  np.testing.assert_array_equal(dynamic_values(signed), bitsandbytes.create_dynamic_map(signed).numpy())


@pytest.mark.parametrize('signed', (True, False))
@pytest.mark.parametrize('shape', SHAPES)
def test_codes_maxima_and_numbers_are_bitsandbytes(shape, signed):
  x = (np.random.default_rng(0).standard_normal(shape) * 1e-3).astype(np.float32)
  x = x if signed else x**2
  x[0] = 0  # blocks of zeros
  ours = jax.jit(lambda x: EightBits.quantize(x, signed))(x)
  values = bitsandbytes.create_dynamic_map(signed)
  # Of float32 their library chooses a neighbour of the nearest code for 2 of 1,000 numbers; of float64 the nearest.
  codes, maxima = torch.ops.bitsandbytes.quantize_blockwise(torch.tensor(x).double(), values, BLOCK)
  codes, maxima = codes.numpy().astype(int), maxima.numpy()
  np.testing.assert_array_equal(np.where(maxima < 1e-37, 0, maxima), np.asarray(ours.maxima).reshape(-1))
  zero = 0 if not signed else int(np.searchsorted(dynamic_values(), 0))
  is_block_of_zeros = np.repeat(maxima < 1e-37, BLOCK)[:x.size].reshape(shape)
  wanted = np.where(is_block_of_zeros, zero, codes)
  if not signed:
    wanted = np.where((x > 0) & (codes == 0), 1, wanted)  # ours keeps apart what was 0 and what was little
  np.testing.assert_array_equal(ours.codes, wanted)
  dense = torch.ops.bitsandbytes.dequantize_blockwise(torch.tensor(wanted.astype(np.uint8)), torch.tensor(maxima),
                                                      values, BLOCK, torch.float32).numpy()
  np.testing.assert_allclose(ours.dense(), np.where(is_block_of_zeros, 0, dense), rtol=1e-6)


def test_a_small_second_moment_never_becomes_nothing():
  """Else Adam would divide by almost zero where a token is rare that shares a block with a frequent one."""
  x = jnp.full(BLOCK, 1e-12).at[0].set(1.0).at[1].set(0.0)
  kept = EightBits.quantize(x, signed=False).dense()
  assert kept[1] == 0 and (kept[2:] > 0).all() and kept[0] == 1


def test_blocks_leave_axes_whole_that_they_need_not_cross():
  shapes = ((2, 4_096, 32, 128), (32, 64), (7, 9), (3, 300, 4))
  assert [num_leading(shape) for shape in shapes] == [2, 0, 0, 0]


def test_bytes_a_number():
  kept = jax.eval_shape(EightBits.quantize, jax.ShapeDtypeStruct((4_096, 14_336), jnp.float32))
  num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
  assert num_bytes / (4_096 * 14_336) == 1 + 4 / BLOCK
