"""Adafactor (Shazeer & Stern 2018, algorithm 4), matrix by matrix: each layer and each expert has its own.

optax's factors the two longest axes of an array, which of stacked layers with heads are not those of a matrix, and
clips and scales by the mean over all layers.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from llm_jax import paths
from llm_jax.config.optimizers import Adafactor
from llm_jax.matrices import Matrix, matrix_of


class SecondMoments(NamedTuple):
  """updates: how many there were, int32.

  rows, columns: of matrices, the means of squared gradients over outputs and over inputs, in the parameter's shape with
    1 for these axes; of other parameters the second moment itself, and 0.
  """
  updates: jax.Array
  rows: Any
  columns: Any


def scale_by_adafactor(config: Adafactor) -> optax.GradientTransformation:
  """Updates of about the size 1, or of the matrix's own size with `scale_by_parameter`; upwards, as the gradient."""

  def init(params: Any) -> SecondMoments:
    rows = paths.map_named(lambda path, leaf: _mean_over_outputs(jnp.zeros_like(leaf), axes_of(path, leaf)), params)
    columns = paths.map_named(lambda path, leaf: _mean_over_inputs(jnp.zeros_like(leaf), axes_of(path, leaf)), params)
    return SecondMoments(jnp.zeros((), jnp.int32), rows, columns)

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    grads = updates
    count = state.updates + 1
    new_share = count.astype(jnp.float32)**-config.decay_power
    decayed = lambda old, new: (1 - new_share) * old + new_share * new
    squares = jax.tree.map(lambda grad: jnp.square(grad) + config.eps, grads)

    def next_rows(path: str, old: jax.Array, square: jax.Array) -> jax.Array:
      return decayed(old, _mean_over_outputs(square, axes_of(path, square)))

    def next_columns(path: str, old: jax.Array, square: jax.Array) -> jax.Array:
      return decayed(old, _mean_over_inputs(square, axes_of(path, square)))

    def scale(path: str, grad: jax.Array, row: jax.Array, column: jax.Array, param: jax.Array) -> jax.Array:
      matrix = axes_of(path, param)
      step = grad * jax.lax.rsqrt(_second_moment(row, column, matrix))
      axes = axes_of_one(path, param, matrix)
      step /= jnp.maximum(1.0, _root_mean_square(step, axes) / config.clip_threshold)
      if config.scale_by_parameter:
        step *= jnp.maximum(_root_mean_square(param, axes), config.least_scale)
      return step

    rows = _map_named(next_rows, state.rows, squares)
    columns = _map_named(next_columns, state.columns, squares)
    return _map_named(scale, grads, rows, columns, params), SecondMoments(count, rows, columns)

  return optax.GradientTransformation(init, update)


def axes_of(path: str, leaf: Any) -> Matrix | None:
  """The axes of a matrix, embeddings and heads included; None for what is not factored: norms and biases."""
  is_weight = path.endswith('/w') and leaf.ndim >= 2
  return matrix_of(path) or (Matrix((-2,), (-1,)) if is_weight else None)


def axes_of_one(path: str, leaf: Any, matrix: Matrix | None) -> tuple[int, ...]:
  """The axes over which one matrix, or one layer's other parameter, extends."""
  if matrix is not None:
    return (*matrix.inputs, *matrix.outputs)
  return tuple(range(1 if path.startswith('blocks/') else 0, leaf.ndim))


def _mean_over_outputs(square: jax.Array, matrix: Matrix | None) -> jax.Array:
  return square if matrix is None else square.mean(matrix.outputs, keepdims=True)


def _mean_over_inputs(square: jax.Array, matrix: Matrix | None) -> jax.Array:
  return jnp.zeros(()) if matrix is None else square.mean(matrix.inputs, keepdims=True)


def _second_moment(row: jax.Array, column: jax.Array, matrix: Matrix | None) -> jax.Array:
  # Divided first: the product of two means of eps alone is below the least float32.
  return row if matrix is None else row / row.mean(matrix.inputs, keepdims=True) * column


def _root_mean_square(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  return jnp.sqrt(jnp.square(x).mean(axes, keepdims=True))


def _map_named(function: Any, tree: Any, *others: Any) -> Any:
  """function(path, leaf, leaves of the other trees)."""
  return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(paths.name(path), *leaves), tree, *others)
