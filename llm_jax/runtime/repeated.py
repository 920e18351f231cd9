"""A function that is called again and again in a thread, beside what runs."""
import contextlib
import threading
from collections.abc import Callable, Generator


@contextlib.contextmanager
def repeated(function: Callable[[], bool], seconds: float, name: str) -> Generator[None]:
  """Calls `function` every `seconds` while the body runs, or until it returns False.

  The last call has returned when this ends. `name` is the thread's.
  """
  ended = threading.Event()

  def run() -> None:
    while not ended.wait(seconds) and function():
      pass

  thread = threading.Thread(target=run, name=name, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
