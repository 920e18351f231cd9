"""What this process is doing, as its watchdog and the other processes see it."""
import contextlib
import dataclasses
from collections.abc import Generator

from llm_jax.runtime import time_use
from llm_jax.runtime.time_use import Use

PATIENCE = 10  # how many times as long as a step something else may take: compiling, evaluating, saving


@dataclasses.dataclass(frozen=True)
class Activity:
  """A moment of this process.

  doing: such as 'compiles stage pretrain'.
  num_started: how many activities have begun. Processes of one run begin the same ones in the same order: the
    one with the lowest number is the one that all wait for.
  beats: signs of life, of which each activity may give many.
  waits: whether it waits for the other processes and can do nothing itself.
  patience: how many times `stall_seconds` may go by without a beat.
  holds_interpreter: whether the activity may keep all of Python's threads from running: then no news is no bad news.
  """
  doing: str = 'starts'
  num_started: int = 0
  beats: int = 0
  waits: bool = False
  patience: float = PATIENCE
  holds_interpreter: bool = False


_now = Activity()  # replaced whole by the main thread, read by others


def now() -> Activity:
  return _now


def begin(doing: str, patience: float = PATIENCE, *, holds_interpreter: bool = False, use: Use = Use.START) -> None:
  """Says what the process does from here on, see `Activity`, and what its time goes to."""
  global _now
  time_use.clock().begin(use)
  last = _now
  _now = Activity(doing, last.num_started + 1, last.beats + 1, False, patience, holds_interpreter)


def mark() -> None:
  """Counts a further part of what the process does, which all processes come to."""
  global _now
  _now = dataclasses.replace(_now, num_started=_now.num_started + 1)


def describe(doing: str) -> None:
  """Says more exactly what the process does; it is no sign of life."""
  global _now
  _now = dataclasses.replace(_now, doing=doing)


def beat() -> None:
  """Says that what the process does goes on."""
  global _now
  _now = dataclasses.replace(_now, beats=_now.beats + 1)


@contextlib.contextmanager
def waiting() -> Generator[None, None, None]:
  """In the body the process waits for the others."""
  global _now
  _now = dataclasses.replace(_now, waits=True)
  yield
  _now = dataclasses.replace(_now, waits=False, beats=_now.beats + 1)
