"""What is set before jax starts."""
import os

from llm_jax.data.fingerprints import cache_folder


def prepare() -> None:
  """Keeps compiled programs between runs, in LLM_JAX_CACHE or ~/.cache/llm_jax. What the environment says wins."""
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache_folder() / 'xla'))
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
