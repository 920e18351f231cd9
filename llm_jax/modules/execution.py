"""How a model is executed: settings that depend on the hardware and change results only by rounding."""
import dataclasses

import jax
import jax.numpy as jnp

from llm_jax.modules.kernels import resolve
from llm_jax.runtime.hardware import has_bfloat16_units


@dataclasses.dataclass(frozen=True)
class Execution:
  """Settings of a model's execution. None means that the backend decides.

  dtype: of the computation, 'float32' or 'bfloat16'. Parameters, softmax, norms and logits stay float32.
  remat: 'none' keeps all activations, 'block' recomputes each block in the backward pass, 'dots' keeps the results of
    matrix products and recomputes the rest, 'offload' keeps them in the host's memory.
  unroll: whether the layers are unrolled (shorter steps on CPU) or scanned (compile time independent of depth).
  kernels: 'cpu' (written for XLA on CPU), 'xla' (plain operations, for accelerators and for adapters) or 'tpu' (plain
    operations, and attention by a Pallas kernel).
  context_attention: how attention works where rows are split over devices: with 'gather' every device gathers all keys
    and values, with 'ring' they are passed from device to device.
  pipeline_microbatches: into how many pieces rows are cut where the layers are split; None: twice as many as stages.
  """
  dtype: str = 'float32'
  remat: str = 'none'
  unroll: bool | None = None
  kernels: str | None = None
  context_attention: str = 'gather'
  pipeline_microbatches: int | None = None

  @property
  def compute_dtype(self) -> jnp.dtype:
    return jnp.dtype(self.dtype)

  @property
  def unrolled(self) -> bool:
    if self.unroll is None:
      return jax.default_backend() == 'cpu'
    return self.unroll

  @property
  def kernel_set(self) -> str:
    return resolve(self.kernels)


def dtype_of(dtype: str) -> str:
  """A run's `dtype`; 'auto' is 'bfloat16' where the devices have units for it, else 'float32'."""
  if dtype != 'auto':
    return dtype
  return 'bfloat16' if has_bfloat16_units(jax.devices()[0]) else 'float32'
