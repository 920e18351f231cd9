"""Pipeline parallelism: the repeats of the pattern are dealt out to stages, each on devices of its own.

The rows of a batch are cut into pieces. In every tick each stage runs its layers on one piece and sends the result to
the next stage, so that after a start all stages compute at once (GPipe, Huang et al. 2019). With S stages and P pieces
there are P + S - 1 ticks, and each stage has a piece in P of them. The rest is the bubble; more pieces make it smaller.

Outside of the layers the stages share the rows as other devices do. Here they gather them, and the last one hands the
results back.

Shapes: B batch, T time, D model width.
"""
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llm_jax.config.run import pieces_of
from llm_jax.sharding.rules import axis_sizes, constrain, mesh_axes
from llm_jax.sharding.ticks import num_ticks

AXIS = 'pipeline'


def stages_here() -> int:
  """Into how many stages the mesh of `jax.set_mesh` splits the layers."""
  return axis_sizes().get(AXIS, 1)


def num_pieces(rows: int, pieces: int | None) -> int | None:
  """Into how many, or None where so many rows cannot be cut: then every device runs all layers on rows of its own.

  pieces: as asked for; None: twice as many as stages.
  """
  stages = stages_here()
  wanted = pieces_of(stages, pieces)
  return wanted if stages > 1 and rows % (wanted * other_row_shards()) == 0 else None


def row_axes() -> tuple[str, ...]:
  """The mesh axes that split the rows of a piece."""
  return tuple(axis for axis in mesh_axes('batch', 'activations', axis_sizes()) if axis != AXIS)


def other_row_shards() -> int:
  """Over how many devices the rows of a piece are split."""
  sizes = axis_sizes()
  return math.prod(sizes[axis] for axis in row_axes())


def run_pipeline(layers: Callable[[Any, jax.Array, Any, jax.Array], tuple[jax.Array, Any]], params: Any,
                 x_BTD: jax.Array, of_rows: Any, pieces: int) -> tuple[jax.Array, Any]:
  """Runs all layers on the rows, as stages.

  Args:
    layers: (parameters of some layers, x_BTD, of_rows of these rows, their numbers) -> (x_BTD, arrays [layers, ...]).
    params: arrays [layers, ...], split over the pipeline axis.
    of_rows: what belongs to the rows, arrays [B, ...].

  Returns:
    x_BTD, and what `layers` returns beside it, arrays [pieces, layers, ...].
  """
  stages = stages_here()
  per_stage = len(jax.tree.leaves(params)[0]) // stages

  def stage(params, cut_x, of_rows):  # arrays [pieces of a device, rows of a piece, ...]
    rank = jax.lax.axis_index(AXIS)
    cut_x, of_rows = jax.tree.map(
      lambda array: constrain(array, None, 'batch', *(None,) * (array.ndim - 2)),
      jax.lax.all_gather((cut_x, of_rows), AXIS, tiled=True))
    numbers = rank * per_stage + jnp.arange(per_stage)

    def tick(before_BTD, t):
      piece = jnp.clip(t - rank, 0, pieces - 1)  # before and after its pieces there is none, and the result is not used
      x_BTD = jnp.where(rank == 0, cut_x[piece], before_BTD)
      x_BTD, beside = layers(params, x_BTD, jax.tree.map(lambda array: array[piece], of_rows), numbers)
      return jax.lax.ppermute(x_BTD, AXIS, [(i, i + 1) for i in range(stages - 1)]), (x_BTD, beside)

    _, (found, beside) = jax.lax.scan(tick, jnp.zeros_like(cut_x[0]), jnp.arange(num_ticks(stages, pieces)))
    own = lambda array: jax.lax.dynamic_slice_in_dim(array, rank, pieces)
    last = jnp.where(rank == stages - 1, own(found), 0)
    last = constrain(last, None, 'batch', 'seq', 'embed')
    return jax.lax.psum_scatter(last, AXIS, tiled=True), jax.tree.map(own, beside)

  split = PartitionSpec(AXIS)
  # check_vma=False for the reason given in `experts.py`.
  run = jax.shard_map(stage, in_specs=(split, split, split), out_specs=(split, PartitionSpec(None, AXIS)),
                      axis_names={AXIS}, check_vma=False)
  cut_x, beside = run(params, *jax.tree.map(lambda array: into_pieces(array, pieces), (x_BTD, of_rows)))
  return from_pieces(cut_x), beside


def into_pieces(rows: jax.Array, pieces: int) -> jax.Array:
  """[B, ...] as [pieces, rows, ...], so that no row changes its device.

  The devices that share rows hold blocks of them, [stages, other devices, rows]. A piece has rows of all others.
  """
  stages, others = stages_here(), other_row_shards()
  grouped = rows.reshape(stages, others, pieces // stages, -1, *rows.shape[1:])
  cut = jnp.moveaxis(grouped, 1, 2).reshape(pieces, -1, *rows.shape[1:])
  return jax.lax.with_sharding_constraint(cut, PartitionSpec(AXIS, row_axes() or None))


def from_pieces(cut: jax.Array) -> jax.Array:
  """The reverse of `into_pieces`."""
  stages, others = stages_here(), other_row_shards()
  grouped = cut.reshape(stages, len(cut) // stages, others, -1, *cut.shape[2:])
  return jnp.moveaxis(grouped, 2, 1).reshape(-1, *cut.shape[2:])
