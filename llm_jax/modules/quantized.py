"""Weights that are stored in fewer bits and expanded where they are used.

A quantised weight stands in the tree of parameters in the place of the array. Its arrays have the axis of scanned
layers in front, as every parameter of `blocks` has.
"""
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.blockwise import EightBits, scaled
from llm_jax.matrices import Matrix, split_shape

BLOCK = 64  # weights that share a scale

# The 16 values of NormalFloat4, quantiles of a normal distribution (Dettmers et al. 2023, QLoRA, appendix E).
NF4_VALUES = np.array([
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
  -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
  0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32)


@flax.struct.dataclass
class NF4Weight:
  """4-bit NormalFloat in blocks of 64 numbers whose scales are quantised to 8 bits (QLoRA, section 3: double
  quantisation): 0.516 bytes a number.

  codes: uint8 [blocks, 32], two indices into the values a byte, the first in the high half.
  scale_codes: uint8 [blocks], the scales less their mean, in the dynamic data type.
  scale_maxima: float32 [blocks / 256], the largest absolute value of 256 scales less their mean.
  scale_mean: float32 [].
  shape: of the weight, of one layer.
  """
  codes: jax.Array
  scale_codes: jax.Array
  scale_maxima: jax.Array
  scale_mean: jax.Array
  shape: tuple[int, ...] = flax.struct.field(pytree_node=False)

  @classmethod
  def quantize(cls, w: jax.Array) -> 'NF4Weight':
    """w: one layer's weight, float32."""
    size = math.prod(w.shape)
    blocks = jnp.pad(w.astype(jnp.float32).reshape(-1), (0, -size % BLOCK)).reshape(-1, BLOCK)
    scales = jnp.abs(blocks).max(1)
    bounds = (NF4_VALUES[:-1] + NF4_VALUES[1:]) / 2
    index = jnp.searchsorted(bounds, scaled(blocks, scales), method='compare_all').astype(jnp.uint8)
    codes = (index[:, ::2] << 4) | index[:, 1::2]

    mean = scales.mean()
    kept = EightBits.quantize(scales - mean)
    return cls(codes, kept.codes, kept.maxima, mean, tuple(w.shape))

  def dense(self, dtype: Any) -> jax.Array:
    """The weight that the codes stand for."""
    num_blocks = len(self.scale_codes)
    scales = EightBits(self.scale_codes, self.scale_maxima, signed=True).dense() + self.scale_mean
    index = jnp.stack([self.codes >> 4, self.codes & 15], axis=-1).reshape(num_blocks, BLOCK)
    w = (jnp.asarray(NF4_VALUES)[index] * scales[:, None]).astype(dtype)
    return w.reshape(-1)[:math.prod(self.shape)].reshape(self.shape)


@flax.struct.dataclass
class Int8Weight:
  """8-bit integers with a scale for each output: w = values x scales.

  values: int8, of the weight's shape.
  scales: float32, of the same shape with 1 for every input axis.
  """
  values: jax.Array
  scales: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    return self.values.shape

  @classmethod
  def quantize(cls, w: jax.Array, matrix: Matrix) -> 'Int8Weight':
    """w: a weight, float32, of one layer or several."""
    scales = jnp.abs(w).max(matrix.inputs, keepdims=True) / 127.5  # the largest rounds to 127 or -128
    scales = jnp.where(scales == 0, 1, scales)
    values = jnp.clip(jnp.round(w / scales), -128, 127).astype(jnp.int8)
    return cls(values, scales)

  def dense(self, dtype: Any) -> jax.Array:
    """The weight that the integers stand for."""
    return (self.values * self.scales).astype(dtype)


@flax.struct.dataclass
class Int4Weight:
  """4-bit integers in groups of 64 along the inputs, with a scale for each group and output: w = integer x scale.

  The axes of the inputs are one here, padded to whole groups. Experts keep their axis in front.

  packed: uint8 [*experts, groups, 32, *outputs], two integers a byte, shifted by 8: the one of an even input in the
    high half.
  group_scales: float32 [*experts, groups, *outputs].
  shape: of the weight, of one layer.
  matrix: which axes of `shape` are inputs, and which outputs.
  """
  packed: jax.Array
  group_scales: jax.Array
  shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
  matrix: Matrix = flax.struct.field(pytree_node=False)

  @classmethod
  def quantize(cls, w: jax.Array, matrix: Matrix) -> 'Int4Weight':
    """w: one layer's weight, float32."""
    experts, inputs, outputs = split_shape(w.shape, matrix)
    axis = len(experts)
    size = math.prod(inputs)
    rows = w.astype(jnp.float32).reshape(*experts, size, *outputs)
    padding = [(0, 0)] * rows.ndim
    padding[axis] = (0, -size % BLOCK)
    groups = jnp.pad(rows, padding).reshape(*experts, -1, BLOCK, *outputs)
    scales = jnp.abs(groups).max(axis + 1) / 7.5  # the largest rounds to 7 or -8
    scales = jnp.where(scales == 0, 1, scales)
    integers = jnp.clip(jnp.round(groups / jnp.expand_dims(scales, axis + 1)), -8, 7).astype(jnp.int32) + 8
    even, odd = (jnp.take(integers, jnp.arange(first, BLOCK, 2), axis + 1) for first in (0, 1))
    return cls((even << 4 | odd).astype(jnp.uint8), scales, tuple(w.shape), matrix)

  def dense(self, dtype: Any) -> jax.Array:
    """The weight that the integers stand for."""
    experts, inputs, outputs = split_shape(self.shape, self.matrix)
    axis = len(experts)
    pairs = jnp.stack([self.packed >> 4, self.packed & 15], axis + 2).astype(jnp.int32) - 8
    groups = pairs.reshape(*experts, -1, BLOCK, *outputs) * jnp.expand_dims(self.group_scales, axis + 1)
    rows = groups.astype(dtype).reshape(*experts, -1, *outputs)
    kept = jax.lax.slice_in_dim(rows, 0, math.prod(inputs), axis=axis)
    return kept.reshape(self.shape)


QuantizedWeight = NF4Weight | Int8Weight | Int4Weight


def is_quantized(leaf: Any) -> bool:
  """Whether a node of a tree of parameters is a quantised weight; for `is_leaf` of jax.tree.map."""
  return isinstance(leaf, QuantizedWeight)


def dense(w: Any, dtype: Any) -> jax.Array:
  """A weight as an array of `dtype`, whether it is quantised or not."""
  return w.dense(dtype) if is_quantized(w) else jnp.asarray(w, dtype)
