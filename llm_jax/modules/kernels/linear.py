"""The matrix product of a layer and its derivative."""
import functools
import math

import jax

from llm_jax.modules.kernels import resolve
from llm_jax.modules.kernels.ordering import barrier


def linear(x: jax.Array, w: jax.Array, contract: int = 1, kernels: str | None = None) -> jax.Array:
  """Contracts the last `contract` axes of x with the first `contract` axes of w.

  Args:
    x: [..., *inner].
    w: [*inner, *outer], of x's dtype.
    contract: how many axes `inner` has: 1 for [..., D] x [D, H, K], 2 for [..., H, K] x [H, K, D].
    kernels: 'xla' is one `jax.lax.dot_general`, which quantisation and adapters may intercept. 'cpu' has its own
      derivative: automatic differentiation leaves XLA:CPU free to fuse the elementwise work around a layer into a
      transposing copy of its operands, which costs more than the product itself.

  Returns:
    [..., *outer].
  """
  if resolve(kernels) == 'cpu':
    return _linear_cpu(x, w, contract)
  inner = tuple(range(contract))
  return jax.lax.dot_general(x, w, ((tuple(x.ndim - contract + i for i in inner), inner), ((), ())))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _linear_cpu(x, w, contract):
  return _forward(x, w, contract)[0]


def _forward(x, w, contract):
  tokens, inner = x.shape[:x.ndim - contract], math.prod(w.shape[:contract])
  x = barrier(x)
  y = barrier(_dot(x.reshape(-1, inner), w.reshape(inner, -1), 1, 0))
  return y.reshape(*tokens, *w.shape[contract:]), (x, w)


def _backward(contract, saved, dy):
  x, w = saved
  inner = math.prod(w.shape[:contract])
  dy = barrier(dy).reshape(-1, math.prod(w.shape[contract:]))
  dx = _dot(dy, w.reshape(inner, -1), 1, 1).reshape(x.shape)
  dw = _dot(x.reshape(-1, inner), dy, 0, 0).reshape(w.shape)
  return barrier(dx, dw)


def _dot(a, b, i, j):
  return jax.lax.dot_general(a, b, (((i,), (j,)), ((), ())))


_linear_cpu.defvjp(_forward, _backward)
