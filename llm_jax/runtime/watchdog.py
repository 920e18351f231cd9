"""Noticing the process that no longer moves."""
import faulthandler
import os
import sys
import threading
import time

import jax

EXIT_STALLED = 70  # EX_SOFTWARE: no step for too long


class Watchdog:
  """Ends the process when no step has finished for `seconds`: a stuck process would hang all the others without a name.

  Armed from the start. `pause` grants PATIENCE times as long, for what is no step: evaluation, samples, a save. On
  expiry the stacks of all threads go to stderr and the process exits with EXIT_STALLED.
  """
  PATIENCE = 10

  def __init__(self, seconds: float):
    self.seconds = seconds
    self._rank = jax.process_index()  # asked now: nothing may be asked of jax when it hangs
    self._last = (time.monotonic(), 0)  # since when, step
    self.pause()
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)
    self._thread.start()

  def beat(self, step: int) -> None:
    """Says that `step` has finished."""
    self._last = (time.monotonic(), step)

  def pause(self) -> None:
    """Grants more time until the next beat."""
    self._last = (time.monotonic() + (self.PATIENCE - 1) * self.seconds, self._last[1])

  def close(self) -> None:
    self._closed.set()
    self._thread.join()

  def _watch(self) -> None:
    while not self._closed.wait(min(1.0, self.seconds / 4)):
      last = self._last
      if time.monotonic() - last[0] > self.seconds:
        print(f'StalledError: process {self._rank} finished no step for {self.seconds:g} s after step '
              f'{last[1]}; stacks follow, exit code {EXIT_STALLED}', file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        os._exit(EXIT_STALLED)
