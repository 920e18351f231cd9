"""A process that no longer moves ends itself; one that does is left alone."""
import os
import subprocess
import sys
import time
from pathlib import Path

from llm_jax.runtime.watchdog import EXIT_STALLED, Watchdog

ROOT = Path(__file__).parents[2]

WATCHED = """
import time
from llm_jax.runtime.watchdog import Watchdog
watchdog = Watchdog(0.5)
time.sleep(0.8)
watchdog.beat(6)
watchdog.pause()
time.sleep(0.8)
watchdog.beat(7)
print('stuck now', flush=True)
def stuck():
  while True: pass
stuck()
"""


def test_watchdog_ends_a_stuck_process_naming_the_step_and_the_place():
  done = subprocess.run([sys.executable, '-c', WATCHED], env={**os.environ, 'PYTHONPATH': str(ROOT)}, text=True,
                        capture_output=True, timeout=60)
  assert done.returncode == EXIT_STALLED
  assert 'stuck now' in done.stdout  # it slept through the times when nothing was to be watched
  assert 'process 0 finished no step for 0.5 s after step 7' in done.stderr and 'in stuck' in done.stderr


def test_watchdog_lets_a_moving_process_live():
  watchdog = Watchdog(20)
  for step in range(3):
    watchdog.beat(step)
    time.sleep(0.1)
  watchdog.close()
