"""Products in which every row is multiplied by its own expert's matrix, and the sorting of rows by expert.

Shapes: M tokens (B x T), X chosen experts, A assignments of tokens to experts (M x X), E experts, D model width,
  F feed-forward width.
"""
import functools

import jax
import jax.numpy as jnp

from llm_jax.modules.kernels import accum_dtype, resolve

MIN_ROWS, MAX_ROWS = 8, 64  # of one product in `grouped_linear` on CPU


def grouped_linear(x_AD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, kernels: str | None = None) -> jax.Array:
  """Multiplies the rows of x, sorted by expert, by their expert's matrix: the first sizes[0] rows by w[0], and so on.

  Args:
    x_AD: float32 or bfloat16; the rows after the first sum(sizes) belong to no expert.
    w_EDF: of x's dtype.
    sizes_E: int32, how many rows each expert has; 0 is allowed.
    kernels: 'xla' is `jax.lax.ragged_dot`. XLA on CPU expands that to a product of every row with every expert (with 8
      experts it takes 8 times one expert's time forward and 18 times with the derivatives; with 64 experts 180 and 90
      times). So 'cpu' loops over blocks of rows instead (two to three times one expert's time).

  Returns:
    [A, F], zero in the rows that belong to no expert.
  """
  if resolve(kernels) == 'cpu':
    return _grouped_cpu(x_AD, w_EDF, sizes_E)
  return jax.lax.ragged_dot(x_AD, w_EDF, sizes_E)


def sort_rows(key_A: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The permutation that sorts `key_A`, stably, and its inverse."""
  order_A = jnp.argsort(key_A, stable=True)
  return order_A, jnp.argsort(order_A)


@jax.custom_vjp
def rows_of(b_EF: jax.Array, expert_A: jax.Array) -> jax.Array:
  """The row of each assignment's expert, [A, F], in b's dtype; zeros where the index is E.

  Its derivative is a product with ones and zeros; automatic differentiation would make a scatter.
  """
  return b_EF.at[expert_A].get(mode='fill', fill_value=0)


def _rows_of_forward(b_EF, expert_A):
  return rows_of(b_EF, expert_A), (b_EF[:, :0], expert_A)


def _rows_of_backward(saved, d_AF):
  empty_E0, expert_A = saved
  is_of_AE = (expert_A[:, None] == jnp.arange(len(empty_E0))).astype(d_AF.dtype)
  return jnp.einsum('AE,AF->EF', is_of_AE, d_AF, precision=jax.lax.Precision.HIGHEST), None


rows_of.defvjp(_rows_of_forward, _rows_of_backward)


@jax.custom_vjp
def dispatch(x_MD: jax.Array, order_A: jax.Array, inverse_A: jax.Array) -> jax.Array:
  """Copies each row once per chosen expert, in the order of `sort_rows`: x[order // X], [A, D].

  `dispatch` and `combine` are each other's transposes. Both are gathers; automatic differentiation would make scatters.
  """
  X = order_A.shape[0] // x_MD.shape[0]
  return x_MD[order_A // X]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def combine(y_AD: jax.Array, order_A: jax.Array, inverse_A: jax.Array, tokens: int) -> jax.Array:
  """The sum of each token's copies, [tokens, D]: puts the rows back from the order of `dispatch`."""
  return y_AD[inverse_A].reshape(tokens, -1, y_AD.shape[-1]).sum(1)


def _dispatch_forward(x_MD, order_A, inverse_A):
  only_for_its_length = x_MD[:, :0]
  return dispatch(x_MD, order_A, inverse_A), (order_A, inverse_A, only_for_its_length)


def _dispatch_backward(saved, dy_AD):
  order_A, inverse_A, empty_M0 = saved
  return combine(dy_AD, order_A, inverse_A, empty_M0.shape[0]), None, None


def _combine_forward(y_AD, order_A, inverse_A, tokens):
  return combine(y_AD, order_A, inverse_A, tokens), (order_A, inverse_A)


def _combine_backward(tokens, saved, dy_MD):
  del tokens
  return dispatch(dy_MD, *saved), None, None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)
combine.defvjp(_combine_forward, _combine_backward)


# ------------------------------------------------------------------------------------------------ on CPU
@jax.custom_vjp
def _grouped_cpu(x, w, sizes):
  return _forward(x, w, sizes)[0]


def _forward(x, w, sizes):
  return _each_block(x, w, sizes, 0), (x, w, sizes)


def _backward(saved, dy):
  x, w, sizes = saved
  rows = _rows(x, w)
  count, expert, start, end = _blocks(sizes, len(x), rows)
  x, pad_dy = _pad(x, rows), _pad(dy, rows)

  def body(j, dw):
    own = (start[j] + jnp.arange(rows) < end[j])[:, None]
    a = jax.lax.dynamic_slice_in_dim(x, start[j], rows)
    b = jnp.where(own, jax.lax.dynamic_slice_in_dim(pad_dy, start[j], rows), 0)
    part = jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=dw.dtype)
    return jax.lax.dynamic_update_index_in_dim(dw, dw[expert[j]] + part, expert[j], 0)

  dw = jax.lax.fori_loop(0, count, body, jnp.zeros(w.shape, accum_dtype(w)))
  return _each_block(dy, w, sizes, 1), dw.astype(w.dtype), None


_grouped_cpu.defvjp(_forward, _backward)


def _each_block(x, w, sizes, contract):
  """Each block of rows times its expert's matrix, or its transpose for contract=1."""
  rows = _rows(x, w)
  count, expert, start, end = _blocks(sizes, len(x), rows)
  padded = _pad(x, rows)

  def body(j, y):
    own = (start[j] + jnp.arange(rows) < end[j])[:, None]
    block = jax.lax.dynamic_slice_in_dim(padded, start[j], rows)
    matrix = jax.lax.dynamic_index_in_dim(w, expert[j], keepdims=False)
    block = jax.lax.dot_general(block, matrix, (((1,), (contract,)), ((), ())))
    # Past the end of its expert, a block holds rows of the next expert. They get zeros here, and their values when the
    # first block of the next expert is written.
    return jax.lax.dynamic_update_slice_in_dim(y, jnp.where(own, block, 0), start[j], 0)

  y = jnp.zeros((len(padded), w.shape[2 - contract]), x.dtype)
  return jax.lax.fori_loop(0, count, body, y)[:len(x)]


def _blocks(sizes, length, rows):
  """The number of blocks of `rows` rows; and each block's expert, its first row, and the end of its expert's rows."""
  blocks_of_expert = -(-sizes // rows)
  blocks_so_far = jnp.cumsum(blocks_of_expert)
  end_of_expert = jnp.cumsum(sizes)
  most_blocks = length // rows + len(sizes)  # because each expert has at most one block that is not full
  j = jnp.arange(most_blocks)
  expert = jnp.minimum(jnp.searchsorted(blocks_so_far, j, side='right'), len(sizes) - 1)
  number_within_expert = j - blocks_so_far[expert] + blocks_of_expert[expert]
  start = end_of_expert[expert] - sizes[expert] + number_within_expert * rows
  return blocks_so_far[-1], expert, start, end_of_expert[expert]


def _rows(x, w):
  """How many rows a block has: about an expert's mean share, rounded up to a power of two."""
  mean_share = len(x) // len(w)
  return min(MAX_ROWS, max(MIN_ROWS, 1 << mean_share.bit_length()))


def _pad(x, rows):
  return jnp.pad(x, ((0, rows), (0, 0)))
