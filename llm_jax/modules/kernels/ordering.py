"""Control over what XLA:CPU fuses, and over when it computes it."""
import functools
from collections.abc import Callable

import jax

from llm_jax.modules.kernels import resolve


def barrier(*arrays):
  """The arrays themselves; XLA does not fuse what computes them with what reads them."""
  if len(arrays) == 1:
    return jax.lax.optimization_barrier(arrays[0])
  return jax.lax.optimization_barrier(arrays)


def not_before(dy, x):
  """x, made to depend on dy, so that the backward pass computes something from x again instead of keeping it.

  XLA:CPU removes barriers before it orders the operations. It would compute the result early in the forward pass and
  hold it until the backward pass. If x depends on the incoming gradient dy, it cannot. Adding 0 times one number per
  row of dy is enough, and keeps the sharding of x, whose rows are where those of dy are. x has as many axes as dy.
  """
  first_of_each_axis = (slice(1),) * (dy.ndim - 1)
  return x + 0 * dy[:, *first_of_each_axis]


def elementwise(f: Callable, *inputs: jax.Array, kernels: str | None = None) -> jax.Array:
  """f(*inputs), all of one shape. With 'cpu' the backward pass keeps only the inputs; 'xla' leaves that to the
  compiler."""
  if resolve(kernels) == 'cpu':
    return _elementwise_cpu(f, *inputs)
  return f(*inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _elementwise_cpu(f, *inputs):
  return f(*inputs)


def _forward(f, *inputs):
  return f(*inputs), inputs


def _backward(f, inputs, dy):
  return jax.vjp(f, *(not_before(dy, x) for x in inputs))[1](dy)


_elementwise_cpu.defvjp(_forward, _backward)
