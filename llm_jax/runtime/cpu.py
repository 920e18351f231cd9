"""Memory and compilation of a process that computes on CPU. The allocator's settings are for Linux with glibc."""
import contextlib
import ctypes
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from collections.abc import Generator

# XLA allocates the temporaries of a step anew at every step. With huge pages, and freed memory kept for the next step
# instead of handed back to the system, a training step is 10-15 % shorter. Read by glibc when a process starts; it
# keeps large blocks for the main thread alone (`compute_in_calling_thread`).
ALLOCATOR = {
    'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
    'MALLOC_MMAP_THRESHOLD_': str(2**33),
    'MALLOC_TRIM_THRESHOLD_': str(2**33),
    'MALLOC_TOP_PAD_': str(2**26),
}


def use_allocator_settings() -> None:
  """Starts this program again with ALLOCATOR in its environment, unless that names GLIBC_TUNABLES already.

  For the first lines of a program that is to compute on CPU, before anything is imported.
  """
  if sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ALLOCATOR})


def compute_in_calling_thread() -> None:
  """Makes XLA on CPU compute in the thread that calls it, not in one of its own. Call it before jax's first array.

  The temporaries of a step then come from the main thread's memory, which glibc keeps. For any other thread glibc maps
  every block above 64 MiB anew, and Linux clears its pages: 150 ms of a step of 1.8 s, and much more at times.
  """
  import jax
  jax.config.update('jax_cpu_enable_async_dispatch', False)


def split_into_devices(count: int) -> None:
  """Makes jax see the CPU as so many devices. Call it before jax's first array.

  XLA computes much of a small model's step in one thread for each device: with a device for each core, and the rows of
  a batch split among them, all cores are busy.
  """
  import jax
  jax.config.update('jax_num_cpu_devices', count)


def disable_compilation_cache() -> None:
  """From here on every program is compiled, none read from the cache on disk.

  For programs that pass arrays round a ring of several CPU devices: one that XLA reads from the cache may start its
  exchanges in another order on each device, and then all of them wait for ever.
  """
  import jax
  from jax.experimental.compilation_cache import compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # jax looks only once whether there is a cache


@contextlib.contextmanager
def releasing_memory() -> 'Generator[None]':
  """For compiling: hands freed memory back to the system before and after the body."""
  release_free_memory()
  yield
  release_free_memory()


def release_free_memory() -> None:
  """Hands freed memory back to the system.

  Tracing, compiling and making a state each free 100 to 300 MB, which glibc would keep: it would count towards the peak
  memory of the steps.
  """
  try:
    ctypes.CDLL('libc.so.6').malloc_trim(0)
  except (OSError, AttributeError):  # another C library
    pass
