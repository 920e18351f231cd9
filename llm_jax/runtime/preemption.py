"""SIGTERM: finish the step, save, exit with EXIT_PREEMPTED."""
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: saved and stopped on request; the same command goes on from there
SAVED = 'everything saved'
INTERRUPTED = b'\nInterrupted: saving after this step; once more to stop at once.\n'

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class Preempted(Exception):
  """The machine asked the run to stop; everything is saved."""


class Preemption:
  """Turns SIGTERM and the first SIGINT into a request that all processes see at the same step.

  With one process a flag is enough. Outside of `steps` nothing waits to be saved (a corpus is tokenised, a step
  compiled, a result computed), so there the request raises Preempted where it arrives.

  With several, jax's own preemption service has the SIGTERM handler (`jax.distributed.initialize` installs it) and
  agrees on a step; SIGINT is passed on to it. More SIGTERMs change nothing. A second SIGINT interrupts at once, which
  leaves the last committed checkpoint intact.

  Use as a context manager, after `joining.join`; the earlier handlers come back at its end.
  """

  def __init__(self) -> None:
    self._requested = False
    self._num_checks = 0
    self._in_steps = False
    self._earlier_handlers: dict[int, Handler] = {}

  def __enter__(self) -> 'Preemption':
    if threading.current_thread() is not threading.main_thread():
      return self  # Python installs no handlers there; some notebooks run their cells so
    self._earlier_handlers[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
    if jax.process_count() == 1:
      self._earlier_handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    for number, handler in self._earlier_handlers.items():
      signal.signal(number, handler)
    self._earlier_handlers.clear()

  @contextlib.contextmanager
  def steps(self) -> Generator[None, None, None]:
    """The body makes state that must be saved before the run may stop: a request waits until `requested` is called."""
    self._in_steps = True
    yield
    self._in_steps = False
    if self._requested:  # after the last call of `requested`
      raise Preempted(SAVED)

  def requested(self) -> bool:
    """Whether to save and stop now. Every process must call it equally often, and all get the same answer."""
    # Counted over all stages: jax agrees on a number that must never go back.
    self._num_checks += 1
    if jax.process_count() == 1:
      return self._requested
    return multihost_utils.reached_preemption_sync_point(self._num_checks)

  def _terminate(self, number: int, frame: FrameType | None) -> None:
    is_first = not self._requested
    self._requested = True
    if is_first and not self._in_steps:
      raise Preempted(SAVED)

  def _interrupt(self, number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if self._in_steps or jax.process_count() > 1:
      # print() is not safe inside a handler that may have interrupted a print.
      os.write(sys.stderr.fileno(), INTERRUPTED)
    if jax.process_count() == 1:
      self._terminate(number, frame)
    else:
      os.kill(os.getpid(), signal.SIGTERM)
