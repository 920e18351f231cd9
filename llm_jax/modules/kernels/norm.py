"""Normalisation over the last axis and its derivative."""
import functools

import jax
import jax.numpy as jnp

from llm_jax.modules.kernels import resolve
from llm_jax.modules.kernels.ordering import not_before


def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float, kernels: str | None = None
              ) -> jax.Array:
  """LayerNorm with a bias (Ba et al. 2016, equation 4), RMSNorm without (Zhang & Sennrich 2019, equation 4).

  Args:
    x: [..., D], any float; computed in float32.
    scale: [D].
    bias: [D], or None for RMSNorm.
    eps: added to the variance or mean square.
    kernels: 'cpu' defines its own derivative, which keeps x and two numbers per token instead of all intermediates.

  Returns:
    [..., D] in x's dtype.
  """
  if resolve(kernels) == 'cpu':
    return _normalize_cpu(x, scale, bias, eps)
  return _forward(x, scale, bias, eps)[0]


def _standardize(x, mean, inverse):
  return (x.astype(inverse.dtype) - mean) * inverse


def _forward(x, scale, bias, eps):
  x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  mean = jnp.zeros((), x32.dtype) if bias is None else x32.mean(-1, keepdims=True)
  inverse = jax.lax.rsqrt(jnp.square(x32 - mean).mean(-1, keepdims=True) + eps)
  y = _standardize(x, mean, inverse) * scale
  y = y if bias is None else y + bias
  return y.astype(x.dtype), (x, scale, bias, mean, inverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize_cpu(x, scale, bias, eps):
  return _forward(x, scale, bias, eps)[0]


def _backward(eps, saved, dy):
  del eps
  x, scale, bias, mean, inverse = saved
  x = not_before(dy, x)
  tokens = tuple(range(x.ndim - 1))
  z, dy = _standardize(x, mean, inverse), dy.astype(inverse.dtype)
  dz = dy * scale
  dx = dz - z * (dz * z).mean(-1, keepdims=True)
  if bias is not None:
    dx -= dz.mean(-1, keepdims=True)
  dbias = None if bias is None else dy.sum(tokens).astype(bias.dtype)
  return (inverse * dx).astype(x.dtype), (dy * z).sum(tokens).astype(scale.dtype), dbias


_normalize_cpu.defvjp(_forward, _backward)
