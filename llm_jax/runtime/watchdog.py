"""A process that hangs is ended, with a message that says where."""
import faulthandler
import os
import sys
import threading
import time
from typing import NamedTuple

import jax

EXIT_STALLED = 70  # EX_SOFTWARE: no step has finished for too long
LONGEST_POLL_SECONDS = 1.0


class _Heartbeat(NamedTuple):
  """The last sign of life: the step that had finished, and the moment from which the next one is waited for."""
  since: float
  step: int


class Watchdog:
  """Ends the process when no step has finished for `seconds`: a stuck process would hang all the others, and nothing
  would say which one it is.

  It watches from the start. `pause` grants PATIENCE times as long, for what is no step: evaluation, generation, a save.
  When the time is over, the stacks of all threads go to stderr and the process exits with EXIT_STALLED.
  """
  PATIENCE = 10

  def __init__(self, seconds: float):
    self.seconds = seconds
    self._rank = jax.process_index()  # asked now: once jax hangs it answers nothing
    self._last = _Heartbeat(time.monotonic(), 0)
    self.pause()
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)
    self._thread.start()

  def beat(self, step: int) -> None:
    """Says that `step` has finished."""
    self._last = _Heartbeat(time.monotonic(), step)

  def pause(self) -> None:
    """Grants more time until the next beat."""
    extra = (self.PATIENCE - 1) * self.seconds
    self._last = _Heartbeat(time.monotonic() + extra, self._last.step)

  def close(self) -> None:
    self._closed.set()
    self._thread.join()

  def _watch(self) -> None:
    poll = min(LONGEST_POLL_SECONDS, self.seconds / 4)
    while not self._closed.wait(poll):
      last = self._last  # read once: the training thread replaces it
      if time.monotonic() - last.since > self.seconds:
        self._end_process(last.step)

  def _end_process(self, step: int) -> None:
    print(f'StalledError: process {self._rank} finished no step for {self.seconds:g} s after step {step}; '
          f'stacks follow, exit code {EXIT_STALLED}', file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    os._exit(EXIT_STALLED)
