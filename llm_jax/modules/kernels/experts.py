"""Products in which each row has its own expert's matrix, and the sorting of rows that brings an expert's together."""
import functools

import jax
import jax.numpy as jnp

from llm_jax.modules.kernels import resolve, wide

ROWS = 8, 64  # the fewest and the most rows of one product in `grouped_linear` on CPU


def grouped_linear(x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, kernels: str | None = None) -> jax.Array:
  """Rows of x, sorted by expert, times their expert's matrix: the first sizes[0] rows times w[0], and so on.

  Args:
    x_MD: float32 or bfloat16; the rows beyond sum(sizes) belong to nobody.
    w_EDF: of x's dtype.
    sizes_E: int32, how many rows each expert has; 0 is allowed.
    kernels: 'xla' is `jax.lax.ragged_dot`. XLA on CPU writes that out as a product of every row with every expert (8
      experts: 8 times one expert's time forward, 18 times with the derivatives; 64 experts: 180 and 90 times), so
      'cpu' walks over blocks of rows, as many as there are (twice to three times one expert's time).

  Returns:
    [M, F], zero in the rows that belong to nobody.
  """
  if resolve(kernels) == 'cpu':
    return _grouped_cpu(x_MD, w_EDF, sizes_E)
  return jax.lax.ragged_dot(x_MD, w_EDF, sizes_E)


def sort_rows(key_M: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The order that sorts `key_M` and keeps equal keys as they were, and that permutation's inverse."""
  order_M = jnp.argsort(key_M, stable=True)
  return order_M, jnp.argsort(order_M)


@jax.custom_vjp
def spread(x_ND: jax.Array, order_M: jax.Array, inverse_M: jax.Array) -> jax.Array:
  """M / N copies of each row, in the order of `sort_rows`: x[order // (M / N)].

  `spread` and `collect` are each other's transposes: both are gathers, where automatic differentiation would scatter.
  """
  return x_ND[order_M // (order_M.shape[0] // x_ND.shape[0])]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def collect(y_MD: jax.Array, order_M: jax.Array, inverse_M: jax.Array, rows: int) -> jax.Array:
  """The sum of each row's copies, [rows, D]: undoes the order of `spread`."""
  return y_MD[inverse_M].reshape(rows, -1, y_MD.shape[-1]).sum(1)


spread.defvjp(lambda x, order, inverse: (spread(x, order, inverse), (order, inverse, x[:, :0])),
              lambda saved, dy: (collect(dy, saved[0], saved[1], saved[2].shape[0]), None, None))
collect.defvjp(lambda y, order, inverse, rows: (collect(y, order, inverse, rows), (order, inverse)),
               lambda rows, saved, dy: (spread(dy, *saved), None, None))


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

  dw = jax.lax.fori_loop(0, count, body, jnp.zeros(w.shape, wide(w)))
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
    # Past the end of its expert a block holds the next one's rows: zeros, until that one's first block replaces them.
    return jax.lax.dynamic_update_slice_in_dim(y, jnp.where(own, block, 0), start[j], 0)

  y = jnp.zeros((len(padded), w.shape[2 - contract]), x.dtype)
  return jax.lax.fori_loop(0, count, body, y)[:len(x)]


def _blocks(sizes, length, rows):
  """How many blocks of `rows` rows there are; and each one's expert, first row, and end of its expert's rows."""
  blocks = -(-sizes // rows)
  until, end = jnp.cumsum(blocks), jnp.cumsum(sizes)
  j = jnp.arange(length // rows + len(sizes))  # never more: each expert has at most one block that is not full
  expert = jnp.minimum(jnp.searchsorted(until, j, side='right'), len(sizes) - 1)
  start = end[expert] - sizes[expert] + (j - until[expert] + blocks[expert]) * rows
  return until[-1], expert, start, end[expert]


def _rows(x, w):
  """Rows of a block: about an expert's share, as a power of two."""
  fewest, most = ROWS
  return min(most, max(fewest, 1 << (len(x) // len(w)).bit_length()))


def _pad(x, rows):
  return jnp.pad(x, ((0, rows), (0, 0)))
