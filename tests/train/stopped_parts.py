"""A run that is stopped between parts of what it writes, and goes on."""
from collections.abc import Callable
from typing import Any

import pytest

from llm_jax.rollout.sample_files import SampleFiles


def parts_written(make: Callable[[], Any], is_made: Callable[[], bool], method: str, stopped_after: int,
                  monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], Any]:
  """(the numbers of the parts that were written before and after the stop, what the second `make` returns).

  is_made: whether all parts are there.   method: of SampleFiles, which writes a part.   stopped_after: parts.
  """
  written: list[int] = []
  write = getattr(SampleFiles, method)

  def recording(self, number, *rest):
    write(self, number, *rest)
    written.append(number)

  def stopping(self, *rest):
    if len(written) == stopped_after:
      raise KeyboardInterrupt
    recording(self, *rest)

  with monkeypatch.context() as patched:
    patched.setattr(SampleFiles, method, stopping)
    patched.setattr(SampleFiles, 'finish', stopping)
    with pytest.raises(KeyboardInterrupt):
      make()
  assert not is_made()
  with monkeypatch.context() as patched:
    patched.setattr(SampleFiles, method, recording)
    return written, make()
