"""The matrix product of a layer and its derivative."""
import functools
import math

import jax

from llm_jax.modules.kernels import resolve
from llm_jax.modules.kernels.ordering import barrier
from llm_jax.sharding.sums import by_device, sum_over_devices


def linear(x: jax.Array, w: jax.Array, contract: int = 1, kernels: str | None = None) -> jax.Array:
  """Contracts the last `contract` axes of x with the first `contract` axes of w.

  Args:
    x: [..., *inner].
    w: [*inner, *outer], of x's dtype.
    contract: how many axes `inner` has: 1 for [..., D] x [D, H, K], 2 for [..., H, K] x [H, K, D].
    kernels: 'xla' is one `jax.lax.dot_general`, which quantisation and adapters can intercept. 'cpu' defines its own
      derivative: with automatic differentiation XLA:CPU may fuse the elementwise work around a layer into a transposing
      copy of its operands, which costs more than the product itself.

  Returns:
    [..., *outer].
  """
  if resolve(kernels) == 'cpu':
    return _linear_cpu(x, w, contract)
  last_of_x = tuple(range(x.ndim - contract, x.ndim))
  first_of_w = tuple(range(contract))
  return jax.lax.dot_general(x, w, ((last_of_x, first_of_w), ((), ())))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _linear_cpu(x, w, contract):
  return _forward(x, w, contract)[0]


def _forward(x, w, contract):
  tokens = x.shape[:x.ndim - contract]
  inner = math.prod(w.shape[:contract])
  x = barrier(x)
  y = barrier(_dot(x.reshape(-1, inner), w.reshape(inner, -1), 1, 0))
  return y.reshape(*tokens, *w.shape[contract:]), (x, w)


def _backward(contract, saved, dy):
  x, w = saved
  inner, outer = math.prod(w.shape[:contract]), math.prod(w.shape[contract:])
  dy = barrier(dy).reshape(-1, outer)
  dx = _dot(dy, w.reshape(inner, -1), 1, 1).reshape(x.shape)
  dw = _dot(x.reshape(-1, inner), dy, 0, 0).reshape(w.shape)
  return barrier(dx, dw)


def _dot(a, b, i, j):
  """A product of two matrices that contracts axis i of a with axis j of b."""
  return jax.lax.dot_general(a, b, (((i,), (j,)), ((), ())))


_linear_cpu.defvjp(_forward, _backward)


# ------------------------------------------------------------------------------------------ tokens on several devices
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def shared_linear(x: jax.Array, w: jax.Array, contract: int, kernels: str, logical: tuple[str, ...]) -> jax.Array:
  """`linear` of x [batch, time, *inner] whose tokens several devices share. Each computes the gradient of w from its
  own tokens, and the sum goes straight to where w is stored.

  logical: the logical axes of w (see `sharding/rules.py`).
  """
  return linear(x, w, contract, kernels)


def _shared_forward(x, w, contract, kernels, logical):
  return linear(x, w, contract, kernels), (x, w)


def _shared_backward(contract, kernels, logical, saved, dy):
  x, w = saved
  _, pull_back = jax.vjp(lambda x: linear(x, w, contract, kernels), x)
  (dx,) = pull_back(dy)
  terms = jax.lax.dot_general(by_device(x), by_device(dy), (((2,), (2,)), ((0, 1), (0, 1))))
  return dx, sum_over_devices(terms, logical)


shared_linear.defvjp(_shared_forward, _shared_backward)
