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

GROUP = 64  # numbers in 4 bits that share a scale

# The 16 values of NormalFloat4, quantiles of a normal distribution (Dettmers et al. 2023, QLoRA, appendix E).
NF4_VALUES = np.array([
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
  -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
  0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32)


@flax.struct.dataclass
class NF4Weight:
  """4-bit NormalFloat in groups of 64 inputs of one output, whose scales are quantised to 8 bits (QLoRA, section 3:
  double quantisation): 0.516 bytes a number.

  These are the blocks that bitsandbytes makes of a linear layer of PyTorch, whose weight has the outputs in front. The
  axes of the inputs are one here, padded to whole groups. Experts keep their axis in front.

  codes: uint8 [*experts, groups, 32, *outputs], indices into the values; the first 32 inputs of a group stand in the
    high halves of the bytes, the last 32 in the low ones.
  scale_codes: uint8 [experts x outputs x groups], the scales less their mean, in the dynamic data type.
  scale_maxima: float32 [len(scale_codes) / 256], the largest absolute value of 256 scales less their mean.
  scale_mean: float32 [].
  shape: of the weight, of one layer.
  matrix: which axes of `shape` are inputs, and which outputs.
  """
  codes: jax.Array
  scale_codes: jax.Array
  scale_maxima: jax.Array
  scale_mean: jax.Array
  shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
  matrix: Matrix = flax.struct.field(pytree_node=False)

  @classmethod
  def quantize(cls, w: jax.Array, matrix: Matrix) -> 'NF4Weight':
    """w: one layer's weight, float32."""
    groups, axis = _in_groups(w, matrix)
    scales = jnp.abs(groups).max(axis + 1)
    values = jnp.moveaxis(scaled(jnp.moveaxis(groups, axis + 1, -1), scales), -1, axis + 1)
    bounds = (NF4_VALUES[:-1] + NF4_VALUES[1:]) / 2
    codes = _packed(jnp.searchsorted(bounds, values, method='compare_all'), axis + 1)

    mean = scales.mean()
    kept = EightBits.quantize(jnp.moveaxis(scales, axis, -1).reshape(-1) - mean)
    return cls(codes, kept.codes, kept.maxima, mean, tuple(w.shape), matrix)

  def dense(self, dtype: Any) -> jax.Array:
    """The weight that the codes stand for."""
    experts, _, outputs = split_shape(self.shape, self.matrix)
    axis = len(experts)
    scales = EightBits(self.scale_codes, self.scale_maxima, signed=True).dense() + self.scale_mean
    scales = jnp.moveaxis(scales.reshape(*experts, *outputs, -1), -1, axis)
    halves = [nf4_values(half) for half in _halves(self.codes)]
    groups = jnp.concatenate(halves, axis + 1) * jnp.expand_dims(scales, axis + 1)
    return _from_groups(groups.astype(dtype), self.shape, self.matrix)


def nf4_values(codes: jax.Array) -> jax.Array:
  """The values of 4-bit codes, float32: chosen by one bit after the other on TPUs, where a table is read slowly (a v5e
  would take 0.1 s for 17 million codes, by its compiler), and read elsewhere. (The compiler for GPUs keeps the bits of
  all choices in memory.)"""
  return jax.lax.platform_dependent(codes, tpu=_choose_values, default=_read_values)


def _read_values(codes: jax.Array) -> jax.Array:
  return jnp.asarray(NF4_VALUES)[codes]


def _choose_values(codes: jax.Array) -> jax.Array:
  chosen = [jnp.float32(value) for value in NF4_VALUES]
  for bit in range(4):
    is_set = (codes >> bit) & 1 != 0
    chosen = [jnp.where(is_set, high, low) for low, high in zip(chosen[::2], chosen[1::2], strict=True)]
  return chosen[0]


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
  """4-bit integers in groups of 64 inputs, with a scale for each group and output: w = integer x scale.

  The axes of the inputs are one here, padded to whole groups. Experts keep their axis in front.

  codes: uint8 [*experts, groups, 32, *outputs], the integers plus 8; the first 32 inputs of a group stand in the high
    halves of the bytes, the last 32 in the low ones.
  group_scales: float32 [*experts, groups, *outputs].
  shape: of the weight, of one layer.
  matrix: which axes of `shape` are inputs, and which outputs.
  """
  codes: jax.Array
  group_scales: jax.Array
  shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
  matrix: Matrix = flax.struct.field(pytree_node=False)

  @classmethod
  def quantize(cls, w: jax.Array, matrix: Matrix) -> 'Int4Weight':
    """w: one layer's weight, float32."""
    groups, axis = _in_groups(w, matrix)
    scales = jnp.abs(groups).max(axis + 1) / 7.5  # the largest rounds to 7 or -8
    scales = jnp.where(scales == 0, 1, scales)
    integers = jnp.clip(jnp.round(groups / jnp.expand_dims(scales, axis + 1)), -8, 7).astype(jnp.int32)
    return cls(_packed(integers + 8, axis + 1), scales, tuple(w.shape), matrix)

  def dense(self, dtype: Any) -> jax.Array:
    """The weight that the integers stand for."""
    axis = len(split_shape(self.shape, self.matrix)[0])
    integers = jnp.concatenate(_halves(self.codes), axis + 1).astype(jnp.int32) - 8
    groups = integers * jnp.expand_dims(self.group_scales, axis + 1)
    return _from_groups(groups.astype(dtype), self.shape, self.matrix)


# ---------------------------------------------------------------------------------------------- groups of inputs
def _in_groups(w: jax.Array, matrix: Matrix) -> tuple[jax.Array, int]:
  """One layer's weight as [*experts, groups, 64, *outputs], float32, filled up with zeros; and the axis of the groups.
  """
  experts, inputs, outputs = split_shape(w.shape, matrix)
  axis, size = len(experts), math.prod(inputs)
  padding = [(0, 0)] * (axis + 1 + len(outputs))
  padding[axis] = (0, -size % GROUP)
  rows = jnp.pad(w.astype(jnp.float32).reshape(*experts, size, *outputs), padding)
  return rows.reshape(*experts, -1, GROUP, *outputs), axis


def _from_groups(groups: jax.Array, shape: tuple[int, ...], matrix: Matrix) -> jax.Array:
  """The weight of `shape` that was cut into these groups."""
  experts, inputs, outputs = split_shape(shape, matrix)
  rows = groups.reshape(*experts, -1, *outputs)
  kept = jax.lax.slice_in_dim(rows, 0, math.prod(inputs), axis=len(experts))
  return kept.reshape(shape)


def _packed(codes: jax.Array, axis: int) -> jax.Array:
  """Codes from 0 to 15, two a byte: the first half of `axis` in the high halves of the bytes."""
  high, low = jnp.split(codes.astype(jnp.uint8), 2, axis)
  return high << 4 | low


def _halves(packed: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The two halves of the codes that `_packed` was given, uint8."""
  return packed >> 4, packed & 15


QuantizedWeight = NF4Weight | Int8Weight | Int4Weight


def is_quantized(leaf: Any) -> bool:
  """Whether a node of a tree of parameters is a quantised weight; for `is_leaf` of jax.tree.map."""
  return isinstance(leaf, QuantizedWeight)


def dense(w: Any, dtype: Any) -> jax.Array:
  """A weight as an array of `dtype`, whether it is quantised or not."""
  return w.dense(dtype) if is_quantized(w) else jnp.asarray(w, dtype)
