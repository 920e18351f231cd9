"""A stage's training as a person sees it: a live display on a terminal, plain lines at a calm rhythm elsewhere."""
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from llm_jax.tracking.live_display import LiveDisplay, Snapshot
from llm_jax.tracking.numbers import duration, size
from llm_jax.tracking.terminal import discard_output, is_terminal

SECONDS_BETWEEN_LINES = 10.0
LEAST_SECONDS_BETWEEN_LINES = 1.0
LINES_PER_RUN = 50
# Numbers of `update` that are shown as they are: name, label, format.
SHOWN = (
  ('loss', 'loss', '{:.4f}'),
  ('tokens_per_second', 'tokens/s', '{:,.0f}'),
  ('mfu', 'MFU', '{:.1%}'),
  ('learning_rate', 'lr', '{:.2e}'),
)


@dataclasses.dataclass(frozen=True)
class _Mark:
  """A step and when it was reached, in seconds of `time.perf_counter`."""
  step: int
  time: float


class Progress:
  """Shows a stage's training: step, loss, tokens/s, MFU, time left, memory, learning rate, the last evaluation.

  Use as a context manager around the loop and call `update` after every step (it is cheap: a few microseconds between
  redraws). On a terminal `rich` redraws 4 times a second; elsewhere a line is printed every 2 % of the steps, at most
  one a second, and otherwise every 10 seconds. A display that fails turns into plain lines, and those into silence:
  training goes on.

  total_steps: where the stage ends.
  start: steps done before (a resumed run).
  enabled: False, for every process but the primary, shows nothing.
  live: whether to redraw in place; None: on a terminal.
  """

  def __init__(self, total_steps: int, title: str, *, start: int = 0, enabled: bool = True, live: bool | None = None,
               file: TextIO | None = None):
    self.total_steps = total_steps
    self.title = title
    self._file = file or sys.stdout
    self._enabled = enabled
    self._wants_live = is_terminal(self._file) if live is None else live
    self._live: LiveDisplay | None = None
    self._step = start
    self._numbers: dict[str, float] = {}
    self._status = ''
    self._entered_at = time.perf_counter()
    self._first_update: _Mark | None = None
    self._last_line = _Mark(start, -math.inf)

  def __enter__(self) -> 'Progress':
    self._entered_at = time.perf_counter()
    if self._enabled and self._wants_live:
      self._attempt(self._start_live)
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    live = self._live
    self._live = None
    if live is not None:
      self._attempt(live.stop)
    elif self._enabled and self._step != self._last_line.step:
      self._attempt(self._print_line)

  def update(self, step: int, **numbers: float) -> None:
    """`step` steps are done.

    numbers: any; shown are loss, tokens_per_second, mfu (0 to 1), learning_rate, memory (bytes), skipped (0 or 1).
    """
    self._step = step
    self._numbers.update(numbers)
    now = time.perf_counter()
    if self._first_update is None:
      self._first_update = _Mark(step, now)
    if self._enabled and self._live is None and self._line_is_due(now):
      self._attempt(self._print_line)

  def evaluated(self, status: str) -> None:
    """Shows an evaluation's result, in words, until the next one."""
    self._status = status
    if self._live is None:
      self.message(f'{self.title}  {status}')

  def message(self, text: str) -> None:
    """Prints a line for good: above the live display, or in turn."""
    def show() -> None:
      if self._live is not None:
        self._live.print(text)
      else:
        print(text, file=self._file, flush=True)

    if self._enabled:
      self._attempt(show)

  def line(self) -> str:
    """The state as one plain line."""
    fields = [f'{label} {value}' for label, value in self._fields()]
    return '  '.join([self.title, f'step {self._step:,}/{self.total_steps:,}', *fields])

  def seconds_left(self) -> float:
    """From the mean pace since the first step ended (it compiles); NaN until the second has."""
    first = self._first_update
    if first is None or self._step <= first.step:
      return math.nan
    seconds_per_step = (time.perf_counter() - first.time) / (self._step - first.step)
    return seconds_per_step * (self.total_steps - self._step)

  def _fields(self) -> list[tuple[str, str]]:
    """(label, value) of all that is known."""
    numbers = self._numbers
    fields = [(label, form.format(float(numbers[name]))) for name, label, form in SHOWN if name in numbers]
    if 'memory' in numbers:
      fields.append(('memory', size(numbers['memory'])))
    if numbers.get('skipped'):
      fields.append(('skipped:', 'loss or gradient out of range'))
    if self._step < self.total_steps:
      fields.append(('left', duration(self.seconds_left())))
    else:
      fields.append(('took', duration(time.perf_counter() - self._entered_at)))
    return fields

  def _line_is_due(self, now: float) -> bool:
    waited = now - self._last_line.time
    advanced = self._step - self._last_line.step
    enough_steps = advanced * LINES_PER_RUN >= self.total_steps
    return waited >= SECONDS_BETWEEN_LINES or (waited >= LEAST_SECONDS_BETWEEN_LINES and enough_steps)

  def _print_line(self) -> None:
    self._last_line = _Mark(self._step, time.perf_counter())
    print(self.line(), file=self._file, flush=True)

  def _start_live(self) -> None:
    self._live = LiveDisplay(self._file, self._snapshot)
    self._live.start()

  def _snapshot(self) -> Snapshot:
    return Snapshot(self.title, self._step, self.total_steps, self._fields(), self._status)

  def _attempt(self, action: Callable[[], None]) -> None:
    """A display that breaks is given up for plain lines, a broken pipe or closed file for silence."""
    try:
      action()
    except Exception as error:
      prints_lines = self._live is None and not self._wants_live
      self._live = None
      self._wants_live = False
      if prints_lines:
        self._enabled = False
        if isinstance(error, OSError):
          discard_output(self._file)
