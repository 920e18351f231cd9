"""Printing where the reader may go away at any time."""
import contextlib
import os
import sys
from typing import TextIO


def say(text: str) -> None:
  """Prints a line. Where nobody reads any more (a closed pipe) it is thrown away: training goes on."""
  try:
    print(text, flush=True)
  except (OSError, ValueError):
    discard_output(sys.stdout)


def discard_output(file: TextIO) -> None:
  """Throws away what is written to a broken file from now on, and what is still in its buffer."""
  with contextlib.suppress(Exception):
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def is_terminal(file: TextIO) -> bool:
  try:
    return file.isatty()
  except Exception:  # closed, or no real file
    return False
