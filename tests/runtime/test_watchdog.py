"""A process that no longer moves ends itself, in every phase; one that does is left alone."""
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_jax.runtime import activity
from llm_jax.runtime.watchdog import EXIT_STALLED, Watchdog

ROOT = Path(__file__).parents[2]

WATCHED = """
import sys, time
from llm_jax.runtime import activity
from llm_jax.runtime.watchdog import Watchdog
watchdog = Watchdog(0.5, rank=2)
for _ in range(4):  # evaluating takes longer than a step, and may show that it goes on
  time.sleep(0.8)
  activity.beat()
if sys.argv[1] == 'step':
  activity.begin('trains, after step 7', patience=1)
else:
  activity.begin(sys.argv[1])
print('stuck now', flush=True)
def stuck():
  while True: pass
stuck()
"""
BLIND = WATCHED.replace('watchdog = Watchdog', '''
import os, threading
Watchdog._stalled = lambda self, limit: None
threading.Timer(9, os._exit, (3,)).start()
watchdog = Watchdog''')


@pytest.mark.parametrize('phase, message', [
  ('step', 'process 2 shows no sign of life for 0.5 s (trains, after step 7)'),
  ('compiles', 'process 2 shows no sign of life for 5 s (compiles)'),
])
def test_watchdog_ends_a_stuck_process_naming_the_phase_and_the_place(phase, message):
  done = subprocess.run([sys.executable, '-c', WATCHED, phase], env={**os.environ, 'PYTHONPATH': str(ROOT)}, text=True,
                        capture_output=True, timeout=60)
  assert done.returncode == EXIT_STALLED
  assert 'stuck now' in done.stdout
  assert f'StalledError: {message}; stacks follow' in done.stderr and 'in stuck' in done.stderr
  assert done.stderr.splitlines()[-1] == f'error: StalledError: {message}; its stacks are above, exit code 70'


@pytest.mark.slow
def test_without_the_watchdog_a_stuck_process_lives_on():
  """The mutation: the test above has a point."""
  done = subprocess.run([sys.executable, '-c', BLIND, 'step'], env={**os.environ, 'PYTHONPATH': str(ROOT)},
                        capture_output=True, timeout=60)
  assert done.returncode == 3 and b'stuck now' in done.stdout


def test_watchdog_lets_a_moving_process_live():
  watchdog = Watchdog(20)
  for step in range(3):
    activity.begin(f'step {step}', 1)
    time.sleep(0.1)
  watchdog.close()
  activity.begin('nothing', activity.PATIENCE)


def test_it_watches_where_stderr_is_no_file(monkeypatch):
  """As in a notebook: its thread goes on, and stacks go to the stderr that the interpreter began with, if to any."""
  for stderr in (io.StringIO(), None):
    monkeypatch.setattr('sys.stderr', stderr)
    watchdog = Watchdog(3.0)
    time.sleep(1.0)  # it has looked once
    assert watchdog._thread.is_alive()
    watchdog.close()
