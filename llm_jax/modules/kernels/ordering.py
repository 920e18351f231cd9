"""What XLA:CPU may fuse, and when it computes."""
import functools
from collections.abc import Callable

import jax

from llm_jax.modules.kernels import resolve


def barrier(*arrays):
  """What stands before is not fused with what stands after."""
  return jax.lax.optimization_barrier(arrays if len(arrays) > 1 else arrays[0])


def not_before(dy, x):
  """x, of as many axes as dy, for a backward pass that computes something from it again rather than keep it.

  XLA:CPU drops barriers before it orders operations, and would compute it, and hold it, long before it is needed: so x
  is made to depend on the incoming gradient. One number of each row will do, which lies where the row of x does.
  """
  return x + 0 * dy[:, *(slice(1),) * (dy.ndim - 1)]


def elementwise(f: Callable, *inputs: jax.Array, kernels: str | None = None) -> jax.Array:
  """f(*inputs), all of one shape. On 'cpu' the backward pass keeps the inputs alone; 'xla' lets the compiler choose."""
  return _elementwise_cpu(f, *inputs) if resolve(kernels) == 'cpu' else f(*inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _elementwise_cpu(f, *inputs):
  return f(*inputs)


def _forward(f, *inputs):
  return f(*inputs), inputs


def _backward(f, inputs, dy):
  return jax.vjp(f, *(not_before(dy, x) for x in inputs))[1](dy)


_elementwise_cpu.defvjp(_forward, _backward)
