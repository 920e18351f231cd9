"""What a person sees while it runs: a live display on a terminal, plain lines at a calm rhythm elsewhere."""
import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.tracking.numbers import duration, size

SECONDS_BETWEEN_LINES = 10.0
LINES_PER_RUN = 50


def say(text: str) -> None:
  """Prints a line. Where nobody reads any more (a closed pipe), it goes nowhere: training goes on."""
  try:
    print(text, flush=True)
  except (OSError, ValueError):
    _mute(sys.stdout)


def _mute(file: Any) -> None:
  """What is written to a broken file from now on, and what is left in its buffer, is thrown away."""
  with contextlib.suppress(Exception):
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


class Progress:
  """Shows a stage's training: step, loss, tokens/s, MFU, time left, memory, learning rate, the last held-out result.

  Use as a context manager around the loop and call `update` after every step (it is cheap: a few microseconds between
  redraws). On a terminal `rich` redraws 4 times a second; elsewhere a line is printed every 2 % of the steps, at most
  one a second, and otherwise every 10 seconds. `enabled=False` (every process but the primary) shows nothing. A display
  that fails turns into plain lines, and those into silence: training goes on.

  total_steps: where the stage ends.   start: steps done before (a resumed run).
  """

  def __init__(self, total_steps: int, title: str, *, start: int = 0, enabled: bool = True, live: bool | None = None,
               file: Any = None):
    self.total_steps, self.title = total_steps, title
    self._file = file or sys.stdout
    self._enabled = enabled
    self._wants_live = _is_terminal(self._file) if live is None else live
    self._live: Any = None
    self._step = start
    self._paced: tuple[int, float] | None = None  # the first step seen, and when
    self._numbers: dict[str, float] = {}
    self._status = ''
    self._began = time.perf_counter()
    self._printed_at, self._printed_step = -math.inf, start

  def __enter__(self) -> 'Progress':
    self._began = time.perf_counter()
    if self._enabled and self._wants_live:
      self._guard(self._start_live)
    return self

  def __exit__(self, *_: Any) -> None:
    live, self._live = self._live, None
    if live is not None:
      self._guard(lambda: live.stop())
    elif self._enabled and self._step != self._printed_step:
      self._guard(self._print_line)

  def update(self, step: int, **numbers: float) -> None:
    """`step` steps are done.

    numbers: any of loss, tokens_per_second, mfu (0 to 1), learning_rate, memory (bytes), skipped (0 or 1).
    """
    self._step = step
    self._paced = self._paced or (step, time.perf_counter())
    self._numbers.update(numbers)
    if self._enabled and self._live is None:
      now = time.perf_counter()
      waited, advanced = now - self._printed_at, step - self._printed_step
      if waited >= SECONDS_BETWEEN_LINES or (waited >= 1 and advanced * LINES_PER_RUN >= self.total_steps):
        self._guard(self._print_line)

  def evaluated(self, status: str) -> None:
    """Shows an evaluation's result, in words, until the next one."""
    self._status = status
    if self._live is None:
      self.message(f'{self.title}  {status}')

  def message(self, text: str) -> None:
    """Prints a line for good: above the live display, or in turn."""
    def show():
      if self._live is not None:
        self._live.console.print(text, markup=False, highlight=False)
      else:
        print(text, file=self._file, flush=True)
    if self._enabled:
      self._guard(show)

  def line(self) -> str:
    """The state as one plain line."""
    step = f'step {self._step:,}/{self.total_steps:,}'
    return '  '.join([self.title, step, *(f'{label} {value}' for label, value in self._fields())])

  def seconds_left(self) -> float:
    """From the mean pace since the first step ended (it compiles); NaN until the second has."""
    if self._paced is None or self._step <= self._paced[0]:
      return math.nan
    first, since = self._paced
    return (time.perf_counter() - since) / (self._step - first) * (self.total_steps - self._step)

  def _fields(self) -> list[tuple[str, str]]:
    numbers, fields = self._numbers, []
    for name, label, form in (('loss', 'loss', '{:.4f}'), ('tokens_per_second', 'tokens/s', '{:,.0f}'),
                              ('mfu', 'MFU', '{:.1%}'), ('learning_rate', 'lr', '{:.2e}')):
      if name in numbers:
        fields.append((label, form.format(float(numbers[name]))))
    if 'memory' in numbers:
      fields.append(('memory', size(numbers['memory'])))
    if numbers.get('skipped'):
      fields.append(('skipped:', 'gradient not finite'))
    if self._step < self.total_steps:
      fields.append(('left', duration(self.seconds_left())))
    else:
      fields.append(('took', duration(time.perf_counter() - self._began)))
    return fields

  def _print_line(self) -> None:
    self._printed_at, self._printed_step = time.perf_counter(), self._step
    print(self.line(), file=self._file, flush=True)

  def _start_live(self) -> None:
    from rich.console import Console
    from rich.live import Live
    # A callable is rendered anew at each refresh, from rich's own thread: the loop itself draws nothing.
    self._live = Live(get_renderable=self._render, console=Console(file=self._file, force_terminal=True),
                      refresh_per_second=4)
    self._live.start()

  def _render(self) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text
    total, head = max(self.total_steps, 1), Table.grid(padding=(0, 1))
    head.add_row(Text(self.title, style='bold'), ProgressBar(total=total, completed=self._step, width=30),
                 Text(f'{self._step / total:4.0%}'), Text(f'step {self._step:,} of {self.total_steps:,}'))
    numbers = Text()
    for label, value in self._fields():
      numbers.append(f'{label} ', style='dim').append(value, style='cyan').append('   ')
    lines = [head, numbers]
    if self._status:
      lines.append(Text(self._status, style='green'))
    return Group(*lines)

  def _guard(self, action: Callable[[], Any]) -> None:
    """A broken display is dropped for plain lines; a broken pipe or closed file for silence."""
    try:
      action()
    except Exception as error:
      if self._live is None and not self._wants_live:
        self._enabled = False
        if isinstance(error, OSError):
          _mute(self._file)
      self._live, self._wants_live = None, False


@contextlib.contextmanager
def task(description: str, total: float | None = None, *, enabled: bool = True, unit: str = '', file: Any = None,
         live: bool | None = None) -> Iterator[Callable[[float], None]]:
  """Shows work that has no loss, such as tokenising: `with task('tokenise', 1000) as advance: advance(10)`.

  total: in the units of `advance`; None where nobody knows it.   unit: 'B' shows sizes, any other word is printed.
  """
  file = file or sys.stderr
  bar = None
  if enabled and (_is_terminal(file) if live is None else live):
    with contextlib.suppress(Exception):
      bar = _rich_bar(total, unit, file)
      identifier = bar.add_task(description, total=total)
      bar.start()
  began, printed, done = time.perf_counter(), time.perf_counter(), 0.0

  def show(last: bool = False, whole: bool = False) -> None:
    amount = size if unit == 'B' else lambda n: f'{n:,.0f} {unit}'.rstrip()
    of = f' of {amount(total)} ({done / total:.0%})' if total and not whole else ''  # a total may be an estimate
    took = f' in {duration(time.perf_counter() - began)}' if last else ''
    with contextlib.suppress(Exception):
      print(f'{description}: {amount(done)}{of}{took}', file=file, flush=True)

  def advance(amount: float = 1) -> None:
    nonlocal printed, done
    done += amount
    if bar is not None:
      with contextlib.suppress(Exception):
        bar.update(identifier, completed=done)
    elif enabled and time.perf_counter() - printed >= SECONDS_BETWEEN_LINES:
      printed = time.perf_counter()
      show()

  whole = False
  try:
    yield advance
    whole = True
  finally:
    if bar is not None:
      with contextlib.suppress(Exception):
        bar.stop()
    elif enabled:
      show(last=True, whole=whole)


def _rich_bar(total: float | None, unit: str, file: Any) -> Any:
  from rich import progress
  from rich.console import Console
  amount = progress.DownloadColumn(binary_units=True) if unit == 'B' else progress.MofNCompleteColumn()
  return progress.Progress(progress.TextColumn('{task.description}'), progress.BarColumn(30),
                           progress.TaskProgressColumn(), amount, progress.TimeRemainingColumn(),
                           console=Console(file=file, force_terminal=True))


def _is_terminal(file: Any) -> bool:
  try:
    return bool(file.isatty())
  except Exception:
    return False
