"""What the wall time of this process goes to: every second is one of `Use`."""
import contextlib
import enum
import os
import pathlib
import time
from collections.abc import Generator


class Use(enum.StrEnum):
  """START: from the start of the process, all that is nothing else.   REDONE: steps that were done before, by a process
  that ended after its last checkpoint."""
  START = 'start'
  COMPILE = 'compile'
  DATA = 'data'
  STEP = 'step'
  REDONE = 'redone steps'
  CHECKPOINT = 'checkpoint'
  EVALUATION = 'evaluation'
  RESTORE = 'restore'


class Clock:
  """Adds up seconds by their use.   started_at: Unix seconds.   use: what time goes to now."""

  def __init__(self, started_at: float):
    self.started_at = started_at
    self._seconds = dict.fromkeys(Use, 0.0)
    self._seconds[Use.START] = max(0.0, time.time() - started_at)
    self.use = Use.START
    self._since = time.monotonic()

  def begin(self, use: Use) -> Use:
    """From here on time goes to `use`; returns what it went to before."""
    now = time.monotonic()
    self._seconds[self.use] += now - self._since
    before, self.use, self._since = self.use, use, now
    return before

  def seconds(self) -> dict[Use, float]:
    """By use, up to now."""
    self.begin(self.use)
    return dict(self._seconds)


def process_started_at() -> float:
  """Unix seconds; where the system does not say, those of now."""
  try:
    fields = pathlib.Path('/proc/self/stat').read_text().rpartition(')')[2].split()
    ticks_after_boot = int(fields[19])
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks_after_boot / os.sysconf('SC_CLK_TCK')
  except (OSError, ValueError, AttributeError, IndexError):
    return time.time()


_clock = Clock(process_started_at())
_has_run = False


def clock() -> Clock:
  """Of the run in this process."""
  return _clock


def begin_run() -> None:
  """A run begins. The first of a process began with the process; a later one, as in a notebook, begins now."""
  global _clock, _has_run
  if _has_run:
    _clock = Clock(time.time())
  _has_run = True


@contextlib.contextmanager
def within(use: Use) -> Generator[None, None, None]:
  """In the body time goes to `use`."""
  before = _clock.begin(use)
  try:
    yield
  finally:
    _clock.begin(before)
