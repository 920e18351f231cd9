"""SIGTERM: finish the step, save, exit with EXIT_PREEMPTED."""
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: saved and stopped on request; the same command goes on from there
SAVED = 'everything saved'


class Preempted(Exception):
  """The machine asked the run to stop; everything is saved."""


class Preemption:
  """Turns SIGTERM and the first SIGINT into a request that all processes see at the same step.

  With one process a flag is enough, and outside of `steps`, where nothing waits to be saved (while a corpus is
  tokenised, a step compiled, a result computed), the request raises Preempted where it arrives. With several, jax's own
  preemption service has the SIGTERM handler (it is installed by `jax.distributed.initialize`) and agrees on a step;
  SIGINT is passed on to it. More SIGTERMs change nothing; a second SIGINT interrupts at once, which leaves the last
  committed checkpoint intact.

  Use as a context manager, after `cluster.join`; the earlier handlers come back at its end.
  """

  def __init__(self):
    self._flag = False
    self._asked = 0
    self._in_steps = False
    self._before: dict[int, object] = {}

  def __enter__(self) -> 'Preemption':
    if threading.current_thread() is threading.main_thread():  # elsewhere (some notebooks) Python allows no handlers
      self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
      if jax.process_count() == 1:
        self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
    return self

  def __exit__(self, *exception: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before.clear()

  @contextlib.contextmanager
  def steps(self) -> Iterator[None]:
    """Within, state is made that must be saved before the run may stop: a request waits until `requested` is asked."""
    self._in_steps = True
    yield
    self._in_steps = False
    if self._flag:  # since it was asked for last
      raise Preempted(SAVED)

  def requested(self) -> bool:
    """Whether to save and stop now. Every process must ask equally often, and all get the same answer."""
    self._asked += 1  # over all stages: jax agrees on a number that must never go back
    if jax.process_count() == 1:
      return self._flag
    return multihost_utils.reached_preemption_sync_point(self._asked)

  def _terminate(self, number: int, frame: FrameType | None) -> None:
    asked_before, self._flag = self._flag, True
    if not self._in_steps and not asked_before:
      raise Preempted(SAVED)

  def _interrupt(self, number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if self._in_steps or jax.process_count() > 1:
      # print() is not safe inside a handler that may have interrupted a print.
      os.write(sys.stderr.fileno(), b'\nInterrupted: saving after this step; once more to stop at once.\n')
    if jax.process_count() == 1:
      self._terminate(number, frame)
    else:
      os.kill(os.getpid(), signal.SIGTERM)
