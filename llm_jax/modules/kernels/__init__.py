"""Where the platform shows: each function has a plain form for the compilers of GPU and TPU ('xla') and one for XLA on
CPU ('cpu'), with equal values. What each trick of the latter buys is measured in benchmarks/train_step.py. On TPU
attention is a kernel of its own ('tpu'), and everything else plain."""
import jax
import jax.numpy as jnp

KERNELS = ('cpu', 'xla', 'tpu')


def resolve(kernels: str | None) -> str:
  """One of KERNELS; None means the one for the default backend."""
  if kernels is None:
    return jax.default_backend() if jax.default_backend() in KERNELS else 'xla'
  if kernels not in KERNELS:
    raise ValueError(f'kernels={kernels!r}: use one of {KERNELS}, or None to choose by backend')
  return kernels


def wide(x: jax.Array) -> jnp.dtype:
  """What sums are kept in: float32, or float64 where x is."""
  return jnp.promote_types(x.dtype, jnp.float32)
