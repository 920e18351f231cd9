"""Shows work that has no loss, such as tokenising: a bar on a terminal, plain lines elsewhere."""
import contextlib
import sys
import time
from collections.abc import Callable, Generator
from typing import TextIO

from llm_jax.tracking.numbers import duration, size
from llm_jax.tracking.terminal import is_terminal

SECONDS_BETWEEN_LINES = 10.0
BYTES = 'B'
BAR_WIDTH = 30


@contextlib.contextmanager
def task(description: str, total: float | None = None, *, enabled: bool = True, unit: str = '',
         file: TextIO | None = None, live: bool | None = None) -> Generator[Callable[[float], None], None, None]:
  """Shows how far the body is: `with task('tokenise', 1000) as advance: advance(10)`. A display that fails is silent.

  total: in the units of `advance`; None where nobody knows it.
  unit: 'B' shows sizes, any other word is printed.
  live: whether to draw a bar; None: on a terminal.
  """
  out = file or sys.stderr
  wants_bar = is_terminal(out) if live is None else live
  display: _Bar | _Lines | None = None
  if enabled and wants_bar:
    with contextlib.suppress(Exception):
      display = _Bar(description, total, unit, out)
  if enabled and display is None:
    display = _Lines(description, total, unit, out)

  def advance(amount: float = 1) -> None:
    if display is not None:
      with contextlib.suppress(Exception):
        display.advance(amount)

  is_complete = False
  try:
    yield advance
    is_complete = True
  finally:
    if display is not None:
      with contextlib.suppress(Exception):
        display.end(is_complete)


class ByteProgress:
  """The same for what reports how many bytes are done and how many there are. Shown from the first report on.

  `with ByteProgress('import') as progress: progress(done, total)`
  """

  def __init__(self, description: str, *, enabled: bool = True, file: TextIO | None = None):
    self._description = description
    self._enabled = enabled
    self._file = file
    self._stack = contextlib.ExitStack()
    self._advance: Callable[[float], None] | None = None
    self._done = 0

  def __enter__(self) -> 'ByteProgress':
    return self

  def __exit__(self, *_: object) -> None:
    self._stack.close()

  def __call__(self, done: int, total: int) -> None:
    if self._advance is None:
      self._advance = self._stack.enter_context(
        task(self._description, total, unit=BYTES, enabled=self._enabled, file=self._file))
    self._advance(done - self._done)
    self._done = done


class _Bar:
  """A progress bar by `rich`."""

  def __init__(self, description: str, total: float | None, unit: str, file: TextIO):
    from rich import progress
    from rich.console import Console
    amount = progress.DownloadColumn(binary_units=True) if unit == BYTES else progress.MofNCompleteColumn()
    self._bar = progress.Progress(
      progress.TextColumn('{task.description}'), progress.BarColumn(BAR_WIDTH), progress.TaskProgressColumn(), amount,
      progress.TimeRemainingColumn(), console=Console(file=file, force_terminal=True))
    self._task = self._bar.add_task(description, total=total)
    self._bar.start()

  def advance(self, amount: float) -> None:
    self._bar.advance(self._task, amount)

  def end(self, is_complete: bool) -> None:
    self._bar.stop()


class _Lines:
  """A line now and then, and one at the end."""

  def __init__(self, description: str, total: float | None, unit: str, file: TextIO):
    self._description = description
    self._total = total
    self._unit = unit
    self._file = file
    self._done = 0.0
    self._start = time.perf_counter()
    self._last_line = self._start

  def advance(self, amount: float) -> None:
    self._done += amount
    now = time.perf_counter()
    if now - self._last_line >= SECONDS_BETWEEN_LINES:
      self._last_line = now
      self._print(f'{self._amount(self._done)}{self._of_total()}')

  def end(self, is_complete: bool) -> None:
    # The total may be an estimate, which the end of the work does away with.
    of_total = '' if is_complete else self._of_total()
    self._print(f'{self._amount(self._done)}{of_total} in {duration(time.perf_counter() - self._start)}')

  def _amount(self, number: float) -> str:
    return size(number) if self._unit == BYTES else f'{number:,.0f} {self._unit}'.rstrip()

  def _of_total(self) -> str:
    return f' of {self._amount(self._total)} ({self._done / self._total:.0%})' if self._total else ''

  def _print(self, text: str) -> None:
    print(f'{self._description}: {text}', file=self._file, flush=True)
