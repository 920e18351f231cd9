"""Every test runs on 8 virtual CPU devices, in exact float32, with a compile cache shared between runs."""
import os
import pathlib
import signal
import tempfile

import pytest

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(pathlib.Path(tempfile.gettempdir()) / 'llm_jax_test_cache'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
os.environ.setdefault('JAX_DEFAULT_MATMUL_PRECISION', 'highest')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
os.environ.setdefault('HF_HUB_OFFLINE', '1')


def pytest_collection_modifyitems(items):
  """The longest first (runs that are killed again and again), so that no worker is left alone with them."""
  items.sort(key=lambda item: 'test_resume.py' not in item.nodeid)


@pytest.fixture
def signals_are_heard():
  """SIGINT and SIGHUP do what they do in a terminal, for this process and those that it starts.

  Where the tests themselves run in the background or under nohup, both are ignored, and a program that finds them
  ignored leaves them so.
  """
  defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
  ignored = {number for number in defaults if signal.getsignal(number) == signal.SIG_IGN}
  for number in ignored:
    signal.signal(number, defaults[number])
  yield
  for number in ignored:
    signal.signal(number, signal.SIG_IGN)
