"""What Orbax's threads print of an error that they also raise: the trainer shows it in one line, as its last."""
import functools
import logging
import sys
from typing import Any

LOOP_IS_CLOSED = 'Event loop is closed'  # of what a failed save leaves unfinished, when it is collected


@functools.cache
def quieten() -> None:
  """Drops these tracebacks from here on."""
  logging.getLogger('absl').addFilter(lambda record: not (record.exc_info and 'orbax' in record.pathname))
  logging.getLogger('asyncio').addFilter(lambda record: 'exception was never retrieved' not in record.getMessage())
  show = sys.unraisablehook

  def show_others(found: Any) -> None:
    if LOOP_IS_CLOSED not in str(found.exc_value):
      show(found)

  sys.unraisablehook = show_others
