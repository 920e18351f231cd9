"""A program that gets a request to stop before it has begun."""
import os
import signal
import subprocess
import sys

import pytest

from launch import runtime
from llm_jax.runtime.preemption import EXIT_PREEMPTED

pytestmark = pytest.mark.usefixtures('signals_are_heard')

REQUESTED = """
import os, signal, sys, time
from launch import runtime
if 'GLIBC_TUNABLES' not in os.environ:  # before the program starts again
  runtime.cpu.use_allocator_settings = lambda settings=runtime.cpu.use_allocator_settings: (
    os.kill(os.getpid(), int(sys.argv[2])) if sys.argv[1] == 'before' else None, settings())
runtime.start()
os.kill(os.getpid(), int(sys.argv[2]))
time.sleep(100)
"""
ENDED = """
import os, signal
from launch import runtime
runtime.start().end()
os.kill(os.getpid(), signal.SIGTERM)
print('the end')
"""
BUSY = """
import ctypes, os, threading
from launch import runtime
runtime.start()
threading.Timer(0.1, os.kill, (os.getpid(), 15)).start()
mutex = ctypes.create_string_buffer(64)
for _ in range(2):  # the second waits for ever, in C, as jax does for other processes
  ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def run(code, *arguments):
  return subprocess.run([sys.executable, '-c', code, *map(str, arguments)], capture_output=True, text=True, timeout=90)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize('when', ['before', 'after'])
def test_nothing_has_begun(number, when):
  done = run(REQUESTED, when, int(number))
  assert done.returncode == runtime.STOPPED == EXIT_PREEMPTED
  assert done.stderr == 'stopped on request before anything began\n'


def test_a_request_is_heard_while_the_main_thread_waits():
  done = run(BUSY)
  assert done.returncode == EXIT_PREEMPTED and done.stderr == 'stopped on request before anything began\n'


def test_a_late_request_changes_nothing():
  done = run(ENDED)
  assert (done.returncode, done.stdout, done.stderr) == (0, 'the end\n', '')


def test_the_cpu_is_split_into_devices():
  program = 'from launch import runtime; runtime.prepare(cpu_devices=3); import jax; print(jax.device_count())'
  env = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'} | {'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run([sys.executable, '-c', program], env=env, capture_output=True, text=True, check=True)
  assert done.stdout == '3\n'
