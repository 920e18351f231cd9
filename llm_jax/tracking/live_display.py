"""A stage's progress redrawn in place, by `rich`."""
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TextIO

REFRESHES_PER_SECOND = 4
BAR_WIDTH = 30


@dataclasses.dataclass(frozen=True)
class Snapshot:
  """What is shown now.   fields: (label, value).   status: the last evaluation's result, or ''."""
  title: str
  step: int
  total_steps: int
  fields: Sequence[tuple[str, str]]
  status: str


class LiveDisplay:
  """Draws what `snapshot` returns, from a thread of rich's own: the training loop draws nothing."""

  def __init__(self, file: TextIO, snapshot: Callable[[], Snapshot]):
    from rich.console import Console
    from rich.live import Live
    console = Console(file=file, force_terminal=True)
    self._live = Live(get_renderable=lambda: _render(snapshot()), console=console,
                      refresh_per_second=REFRESHES_PER_SECOND)

  def start(self) -> None:
    self._live.start()

  def stop(self) -> None:
    self._live.stop()

  def print(self, text: str) -> None:
    """Prints a line above the display, for good."""
    self._live.console.print(text, markup=False, highlight=False)


def _render(now: Snapshot) -> Any:
  from rich.console import Group
  from rich.progress_bar import ProgressBar
  from rich.table import Table
  from rich.text import Text
  total = max(now.total_steps, 1)
  head = Table.grid(padding=(0, 1))
  head.add_row(
    Text(now.title, style='bold'),
    ProgressBar(total=total, completed=now.step, width=BAR_WIDTH),
    Text(f'{now.step / total:4.0%}'),
    Text(f'step {now.step:,} of {now.total_steps:,}'),
  )
  numbers = Text()
  for label, value in now.fields:
    numbers.append(f'{label} ', style='dim').append(value, style='cyan').append('   ')
  lines: list[Any] = [head, numbers]
  if now.status:
    lines.append(Text(now.status, style='green'))
  return Group(*lines)
