"""Functions whose code depends on the platform.

Each has a plain version for the compilers of GPU and TPU ('xla') and a version written for XLA on CPU ('cpu'); both
compute the same values. `benchmarks/train_step.py` measures what each CPU version saves. On TPU ('tpu') attention is a
Pallas kernel, and everything else is the plain version.
"""
import jax
import jax.numpy as jnp

KERNELS = ('cpu', 'xla', 'tpu')


def resolve(kernels: str | None) -> str:
  """One of KERNELS; None means the one for the default backend."""
  if kernels is None:
    backend = jax.default_backend()
    return backend if backend in KERNELS else 'xla'
  if kernels not in KERNELS:
    raise ValueError(f'kernels={kernels!r}: use one of {KERNELS}, or None to choose by backend')
  return kernels


def accum_dtype(x: jax.Array) -> jnp.dtype:
  """The dtype in which sums of x are accumulated: float32, or float64 if x is float64."""
  return jnp.promote_types(x.dtype, jnp.float32)
