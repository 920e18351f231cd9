"""How a model is executed: what depends on the hardware and never changes what is computed beyond rounding."""
import dataclasses

import jax
import jax.numpy as jnp

from llm_jax.modules.kernels import resolve


@dataclasses.dataclass(frozen=True)
class Execution:
  """The machine's part of a model; None means "chosen for the backend".

  dtype: of the computation ('float32' or 'bfloat16'). Parameters, softmax, norms and logits stay float32.
  remat: 'none' keeps activations, 'block' recomputes each block in the backward pass, 'dots' keeps matmul results.
  unroll: write the layers out (shorter steps on CPU) or scan over them (compile time independent of depth).
  kernels: 'cpu' (written for XLA:CPU), 'xla' (plain operations, for accelerators and for adapters) or 'tpu' (the same,
    with attention as a kernel for TPU).
  context_attention: how attention works where rows are split over devices: with 'gather' every device gathers all keys
    and values, with 'ring' they are passed from device to device.
  """
  dtype: str = 'float32'
  remat: str = 'none'
  unroll: bool | None = None
  kernels: str | None = None
  context_attention: str = 'gather'

  @property
  def compute_dtype(self) -> jnp.dtype:
    return jnp.dtype(self.dtype)

  @property
  def unrolled(self) -> bool:
    return jax.default_backend() == 'cpu' if self.unroll is None else self.unroll

  @property
  def kernel_set(self) -> str:
    return resolve(self.kernels)


def dtype_of(dtype: str) -> str:
  """A run's `dtype`, with 'auto' made 'float32' on CPU and 'bfloat16' elsewhere."""
  native = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
  return native if dtype == 'auto' else dtype
