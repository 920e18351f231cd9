"""A process that hangs is ended, with a message that says where, and for whom the others wait."""
import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Sequence
from typing import TextIO

from llm_jax.runtime import activity
from llm_jax.runtime.peers import Behind, Peers
from llm_jax.runtime.requests import leave, tell

EXIT_STALLED = 70  # EX_SOFTWARE: nothing has moved for too long
LONGEST_POLL_SECONDS = 1.0
VERDICT_SECONDS = 3.0  # for news of the others, where it is not clear who is behind
BACKSTOP_SECONDS = 5.0  # after twice its time a process ends even if no Python thread runs any more (exit code 1)


class Watchdog:
  """Ends the process when it shows no sign of life for `seconds` (see `activity`), or PATIENCE times as long for what
  is no step: a stuck process would hang all the others, and nothing would say which one it is.

  It watches from when it is made. While another process of the run goes on, none is ended: they may all wait for it.

  When the time is over, the stacks of all threads go to stderr and the process exits with EXIT_STALLED; its last line
  names the process that is behind. One that is not behind itself lets that one end first.

  rank, peers: set them once they are known.
  """

  def __init__(self, seconds: float, rank: int = 0):
    self.seconds = seconds
    self.rank = rank
    self.peers: Peers | None = None
    self._stacks = _stream_of_stacks()
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)
    self._thread.start()

  def close(self) -> None:
    self._closed.set()
    self._thread.join()

  def _watch(self) -> None:
    poll = min(LONGEST_POLL_SECONDS, self.seconds / 4)
    polled_at = seen_at = time.monotonic()
    idle = 0.0
    last = activity.now()
    while not self._closed.wait(poll):
      now = time.monotonic()
      # A process that was stopped and continued (Ctrl-Z, a suspended laptop) was not idle meanwhile.
      idle += min(now - polled_at, 2 * poll)
      polled_at = now
      current = activity.now()
      if current != last or (self.peers is not None and self.peers.beat_at > seen_at):
        last, seen_at, idle = current, now, 0.0
      limit = current.patience * self.seconds
      # Where a thread keeps the interpreter to itself, this one does not run: the timer needs no interpreter.
      if self._stacks is not None:
        faulthandler.dump_traceback_later(2 * limit + BACKSTOP_SECONDS, exit=True, file=self._stacks)
      if idle > limit:
        self._stalled(limit)
    faulthandler.cancel_dump_traceback_later()

  def _stalled(self, limit: float) -> None:
    behind = self._behind()
    is_alone = [each.rank for each in behind] == [self.rank]
    if not is_alone:  # one that is behind ends by itself, which ends this one; one that is stopped does not
      time.sleep(VERDICT_SECONDS)
      behind = self._behind()
    doing = activity.now().doing
    if self.rank in (each.rank for each in behind):
      what = f'StalledError: process {self.rank} shows no sign of life for {limit:g} s ({doing})'
    else:
      what = (f'StalledError: process {self.rank} has waited {limit:g} s ({doing}) for {_names(behind)}')
    tell(f'{what}; stacks follow')
    if self._stacks is not None:
      faulthandler.dump_traceback(file=self._stacks, all_threads=True)
    if self.peers is not None:
      self.peers.close(EXIT_STALLED, what)
    leave(EXIT_STALLED, f'error: {what}; its stacks are above, exit code {EXIT_STALLED}')

  def _behind(self) -> Sequence[Behind]:
    alone = [Behind(self.rank, activity.now().doing, False)]
    return alone if self.peers is None else self.peers.behind() or alone


def _stream_of_stacks() -> TextIO | None:
  """Where the interpreter can write stacks by itself; in a notebook `sys.stderr` is no file of the system."""
  for stream in (sys.stderr, sys.__stderr__):
    if stream is None:  # a program without a terminal
      continue
    with contextlib.suppress(AttributeError, OSError, ValueError):
      stream.fileno()
      return stream
  return None


def _names(behind: Sequence[Behind]) -> str:
  return ', '.join(f'process {each.rank}, which ' + ('does not answer' if each.is_quiet else each.doing)
                   for each in behind)
