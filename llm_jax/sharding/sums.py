"""Sums over devices that each hold a term of it, as they do of a weight's gradient: each gets its part of the sum.

Left alone, the compiler may add up the whole gradient on every device and then cut it (an all-reduce). Here a sum that
the weight's sharding cuts into parts is a reduce-scatter, which sends half of those bytes.

Shapes: B batch, T time.
"""
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llm_jax.sharding.rules import axis_sizes, dividing_axes, parameter_spec, split_counts

LEAST_IN_STAGES = 16  # devices of an axis along which a sum goes in two stages


def is_shared_out(shape: tuple[int, ...]) -> bool:
  """Whether several devices share the tokens of an activation [batch, time, ...]."""
  return max(split_counts(shape[:2], 'batch', 'seq')) > 1


def by_device(a: jax.Array) -> jax.Array:
  """[batch, time, ...] -> [row shards, time shards, tokens, ...]: the tokens that each device holds."""
  (B, T, *rest), (rows, times) = a.shape, split_counts(a.shape[:2], 'batch', 'seq')
  return jnp.moveaxis(a.reshape(rows, B // rows, times, T // times, *rest), 2, 1).reshape(rows, times, -1, *rest)


def sum_over_devices(terms: jax.Array, logical: tuple[str, ...]) -> jax.Array:
  """[row shards, time shards, ...] of which each device holds one entry -> their sum [...], sharded as the weight is.

  logical: the logical axes of the weight, as `rules.parameter_axes` gives them.
  """
  sizes = axis_sizes()
  row_axes, time_axes = dividing_axes(terms.shape[:2], ('batch', 'seq'), sizes)
  summed = (*row_axes, *time_axes)
  weight = parameter_spec(logical, terms.shape[2:], sizes)
  scattered = [axis for axis in weight if axis in summed]
  whole = tuple(axis for axis in summed if axis not in scattered)
  kept = [None if axis in summed else axis for axis in weight]

  def local(term):
    total = term.reshape(term.shape[2:])
    for axis in scattered:
      total = _scattered_sum(total, axis, tuple(weight).index(axis))
    return jax.lax.psum(total, whole) if whole else total

  # check_vma=False for the reason given in `experts.py`.
  held = PartitionSpec(row_axes or None, time_axes or None, *kept)
  return jax.shard_map(local, in_specs=held, out_specs=weight, check_vma=False)(terms)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gathered(x: jax.Array, axis: str, dimension: int) -> jax.Array:
  """The whole of a weight whose `dimension` a mesh axis splits; under `shard_map`. Its gradient is summed in parts."""
  return jax.lax.all_gather(x, axis, axis=dimension, tiled=True)


def _gathered_forward(x, axis, dimension):
  return gathered(x, axis, dimension), None


def _gathered_backward(axis, dimension, saved, d):
  del saved
  return (_scattered_sum(d, axis, dimension),)


gathered.defvjp(_gathered_forward, _gathered_backward)


def sum_of_rows(index: jax.Array, d: jax.Array, shape: tuple[int, int], dtype: jnp.dtype, logical: tuple[str, str]
                ) -> jax.Array:
  """The gradient of a table [rows, width] that was read by index: a row gets the sum of d over the tokens that read it.

  The tokens go to where their part of the width is stored (an all-to-all), because they are fewer than the rows.

  index: int [batch, time].   d: [batch, time, width].   shape: of the table.   dtype: of the sum.
  logical: the table's logical axes.
  """
  sizes = axis_sizes()
  row_axes, time_axes = dividing_axes(index.shape, ('batch', 'seq'), sizes)
  summed = (*row_axes, *time_axes)
  weight = parameter_spec(logical, shape, sizes)
  rows_axis, width_axis = weight
  num_rows = shape[0] // sizes[rows_axis] if rows_axis else shape[0]
  whole = tuple(axis for axis in summed if axis != width_axis)

  def local(index, d):
    if width_axis in summed:
      d = jax.lax.all_to_all(d, width_axis, split_axis=2, concat_axis=0, tiled=True)
      index = jax.lax.all_gather(index, width_axis, axis=0, tiled=True)
    if rows_axis:
      index = index - num_rows * jax.lax.axis_index(rows_axis)
    index = jnp.where((index >= 0) & (index < num_rows), index, num_rows)  # what another device has is dropped
    total = jnp.zeros((num_rows, d.shape[-1]), dtype).at[index].add(d.astype(dtype), mode='drop')
    return jax.lax.psum(total, whole) if whole else total

  tokens = PartitionSpec(row_axes or None, time_axes or None)
  # check_vma=False for the reason given in `experts.py`.
  width = None if width_axis in summed else width_axis
  return jax.shard_map(local, in_specs=(tokens, PartitionSpec(*tokens, width)), out_specs=weight, check_vma=False)(
    index, d)


def _scattered_sum(x: jax.Array, axis: str, dimension: int) -> jax.Array:
  """The sum over the devices of a mesh axis, of which each gets its part of `dimension`."""
  for group in _stages(axis):
    x = jax.lax.psum_scatter(x, axis, scatter_dimension=dimension, axis_index_groups=group, tiled=True)
  return x


def _stages(axis: str) -> tuple[list[list[int]] | None, ...]:
  """The groups of devices in which a sum goes, one stage after the other; None: all along the axis.

  XLA for TPU makes an all-reduce of a reduce-scatter over all devices of the mesh at once, and of one over groups of
  them it does not. The bytes sent are the same: (1 - 1/a) + 1/a (1 - 1/b) = 1 - 1/(ab).
  """
  mesh = jax.sharding.get_abstract_mesh()
  size = mesh.shape[axis]
  is_all = size == mesh.size and size >= LEAST_IN_STAGES
  if jax.default_backend() != 'tpu' or not is_all:
    return (None,)
  first = next(divisor for divisor in range(4, size + 1) if size % divisor == 0)
  rest = size // first
  far = [[i + j * rest for j in range(first)] for i in range(rest)]
  near = [[i + j * rest for i in range(rest)] for j in range(first)]
  return far, near
