"""What is set before a program computes."""
import glob
import os

from llm_jax import cpu
from llm_jax.data.fingerprints import cache_folder


def start() -> None:
  """First of all in a program: without an accelerator, starts it again with an allocator that suits XLA."""
  if not any(map(glob.glob, ('/dev/nvidia[0-9]*', '/dev/accel*', '/dev/vfio/[0-9]*'))):
    cpu.use_allocator_settings()


def prepare() -> None:
  """Keeps compiled programs between runs, in LLM_JAX_CACHE or ~/.cache/llm_jax. What the environment says wins.

  What is computed on CPU is computed in the thread that asks for it.
  """
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache_folder() / 'xla'))
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
  cpu.compute_in_calling_thread()
