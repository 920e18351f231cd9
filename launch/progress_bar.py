"""A progress bar of bytes, for what reports how many are done and how many there are."""
import contextlib
from collections.abc import Callable

from llm_jax.tracking.task import task


class ProgressBar:
  """Shown from the first call on, which says the total: `with ProgressBar('import') as bar: bar(done, total)`."""

  def __init__(self, title: str):
    self._title = title
    self._stack = contextlib.ExitStack()
    self._advance: Callable[[float], None] | None = None
    self._done = 0

  def __enter__(self) -> 'ProgressBar':
    return self

  def __exit__(self, *_: object) -> None:
    self._stack.close()

  def __call__(self, done: int, total: int) -> None:
    if self._advance is None:
      self._advance = self._stack.enter_context(task(self._title, total, unit='B'))
    self._advance(done - self._done)
    self._done = done
