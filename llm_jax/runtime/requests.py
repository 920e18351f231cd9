"""Requests to stop: SIGTERM, SIGINT and SIGHUP, heard by a thread of their own."""
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
FLUSH_SECONDS = 2.0
SETTLE_SECONDS = 0.05  # in which other threads end the writes that they have begun
SHOW_CURSOR = b'\x1b[?25h'

Answer = Callable[[int], None]


class Requests:
  """Calls `answer` with the number of every signal of REQUESTS, in a thread.

  Python runs the handler of a signal in the main thread, between two of its instructions: it is late where that thread
  waits inside of jax, and what it raises may unwind a compilation at work or be lost in a callback. So the handlers do
  nothing here. The thread reads the signals from a pipe and answers at once, whatever the main thread does.

  SIGHUP stays ignored where it was when the program started, as `nohup` wants it.

  Call `start` in the main thread, with the signals blocked or not; it unblocks them.
  """

  def __init__(self, answer: Answer):
    self.answer = answer
    self._handled: list[int] = []

  def start(self) -> None:
    reading_end, writing_end = os.pipe()
    os.set_blocking(writing_end, False)
    signal.set_wakeup_fd(writing_end, warn_on_full_buffer=False)
    threading.Thread(target=self._listen, args=(reading_end,), name='requests', daemon=True).start()
    self._handled = [number for number in REQUESTS if not _is_ignored_hangup(number)]
    for number in self._handled:
      signal.signal(number, _wake)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)

  def end(self) -> None:
    """Late requests no longer change the exit code; Ctrl-C interrupts at once."""
    for number in self._handled:
      if signal.getsignal(number) is _wake:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)
    self.answer = _do_nothing

  def _listen(self, pipe: int) -> None:
    while True:
      [number] = os.read(pipe, 1)
      if number in self._handled:
        self.answer(number)


def leave(code: int, last: str = '') -> NoReturn:
  """Ends the process at once, without tearing anything down under threads that still compute; what was printed is kept.

  Nothing else may follow: locks, temporary files and background threads are left to the kernel.

  last: a line for stderr, after what other threads have printed meanwhile. It stays the last: what they print from then
    on goes nowhere.
  """
  # In a thread of its own: another one may hold the lock of a file whose reader is gone, or sleeps.
  flushing = threading.Thread(target=_flush, daemon=True)
  flushing.start()
  flushing.join(FLUSH_SECONDS)
  if last:
    _tell_last(last)
  os._exit(code)


def _tell_last(line: str) -> None:
  """Prints a line on stderr, and from then on nothing."""
  try:
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
  except OSError:  # stderr is closed, or there are too many open files
    tell(line)
    return
  time.sleep(SETTLE_SECONDS)
  with contextlib.suppress(OSError):  # its reader is gone
    os.write(stderr, f'{line}\n'.encode())


def _flush() -> None:
  for file in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed
      file.flush()
  with contextlib.suppress(OSError):
    _show_cursor()


def tell(text: str) -> None:
  """Prints a line on stderr where print() may not be used: in a handler, or while another thread holds its lock."""
  with contextlib.suppress(OSError):  # stderr is closed
    os.write(2, f'{text}\n'.encode())


def _show_cursor() -> None:
  """A live display that is not ended by itself has hidden the cursor of the terminal."""
  for descriptor in (1, 2):
    if os.isatty(descriptor):
      os.write(descriptor, SHOW_CURSOR)
      return


def _is_ignored_hangup(number: int) -> bool:
  return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


def _wake(number: int, frame: FrameType | None) -> None:
  """Python's part of a signal has written its number to the pipe by now."""


def _do_nothing(number: int) -> None:
  pass
