"""What every program sets before it computes: its signals, its allocator, its cache of compiled programs."""
import contextlib
import glob
import os
import signal
import threading
from collections.abc import Generator
from types import FrameType

from llm_jax.runtime import cpu
from llm_jax.runtime.requests import REQUESTS, Requests

STOPPED = 75  # the exit code after a request to stop: `EXIT_PREEMPTED`, which cannot be imported before jax
INTERRUPTED = 128 + signal.SIGINT  # as a shell has it
ACCELERATORS = ('/dev/nvidia[0-9]*', '/dev/accel*', '/dev/vfio/[0-9]*')  # files that exist where there is one
_stopping = threading.Lock()  # the first request prints


def start() -> Requests:
  """First of all in a program that trains: without an accelerator, starts it again with an allocator that suits XLA.

  SIGTERM, Ctrl-C and SIGHUP end the program with code 75 until others answer them (`Preemption`).
  """
  # Signals wait until they are heard: a program that starts again loses them else.
  signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
  if not any(glob.glob(pattern) for pattern in ACCELERATORS):
    cpu.use_allocator_settings()
  requests = Requests(_stop)
  requests.start()
  return requests


def _stop(number: int) -> None:
  if _stopping.acquire(blocking=False):
    with contextlib.suppress(OSError):  # stderr is closed
      os.write(2, b'stopped on request before anything began\n')
    os._exit(STOPPED)


def _interrupt(number: int, frame: FrameType | None) -> None:
  with contextlib.suppress(OSError):
    os.write(2, b'\n')  # after the terminal's ^C
  os._exit(INTERRUPTED)


@contextlib.contextmanager
def leaving_on_interrupt() -> Generator[None]:
  """Within, Ctrl-C ends the program: a KeyboardInterrupt while jax loads or compiles may be lost, or be a crash."""
  before = signal.signal(signal.SIGINT, _interrupt)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)


def prepare(cpu_devices: int | None = None) -> None:
  """Keeps compiled programs between runs, in LLM_JAX_CACHE or ~/.cache/llm_jax; on CPU computes in the calling thread.

  Variables that the environment already has stay as they are.

  cpu_devices: into how many devices jax splits the CPU.
  """
  from llm_jax.data.fingerprints import cache_folder
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache_folder() / 'xla'))
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
  cpu.compute_in_calling_thread()
  if cpu_devices is not None:
    cpu.split_into_devices(cpu_devices)
