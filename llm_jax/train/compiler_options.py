"""What the compilers are told for a step on several devices, so that collectives run while the devices compute."""
import os
from collections.abc import Mapping

import jax

from llm_jax.tracking.terminal import say

# Without these a TPU v5p waits for each all-gather. (The v5e's defaults are the same.) As MaxText sets them, in
# benchmarks/xla_flags_library.py.
TPU = {
  'xla_tpu_enable_async_collective_fusion': 'true',
  'xla_tpu_enable_async_collective_fusion_fuse_all_gather': 'true',
  'xla_tpu_enable_async_collective_fusion_multiple_steps': 'true',
  'xla_tpu_overlap_compute_collective_tc': 'true',
  'xla_enable_async_all_gather': 'true',
}
# Of several slices: sums over the network between them, while the next layers compute.
TPU_SLICES = {
  'xla_tpu_enable_data_parallel_all_reduce_opt': 'true',
  'xla_tpu_data_parallel_opt_different_sized_ops': 'true',
}
GPU = {'xla_gpu_enable_latency_hiding_scheduler': True}
FLAGS = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')  # where a user says otherwise


Options = Mapping[str, str | bool]


def options_for(backend: str, mesh: jax.sharding.Mesh, environment: Mapping[str, str] = os.environ) -> Options:
  """The options of a step on these devices, by name; those that the user's own flags name are left to them.

  backend: 'tpu', 'gpu' or 'cpu'.
  """
  if mesh.size == 1:
    return {}
  options = {'tpu': TPU, 'gpu': GPU}.get(backend, {})
  num_slices = len({getattr(device, 'slice_index', 0) for device in mesh.devices.flat})
  if backend == 'tpu' and num_slices > 1:
    options = {**options, **TPU_SLICES}
  flags = ' '.join(environment.get(name, '') for name in FLAGS)
  return {name: value for name, value in options.items() if f'--{name}' not in flags}


REFUSED = ('option', 'RET_CHECK', 'INTERNAL')  # in what a compiler says of options that it does not know, or fails with


def compile_with_options(lowered: jax.stages.Lowered, options: Options) -> jax.stages.Compiled:
  """The compiled program. A compiler of another version that does not know an option, or fails inside with them,
  compiles without any, and a line says so: they change how fast a step is and nothing else."""
  if not options:
    return lowered.compile()
  try:
    return lowered.compile(compiler_options=dict(options))
  except jax.errors.JaxRuntimeError as error:
    if not any(word in str(error) for word in REFUSED):
      raise
    [first, *_] = str(error).splitlines()
    say(f'this compiler does not take the options for collectives, and compiles without them ({first})')
    return lowered.compile()
