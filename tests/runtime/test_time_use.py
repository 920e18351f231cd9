"""What the wall time of runs went to: every second once."""
import time

import pytest

from llm_jax.runtime import time_use
from llm_jax.runtime.time_use import Clock, Use
from llm_jax.tracking.metrics import MetricsWriter, read_time_use


@pytest.fixture
def ticking(monkeypatch):
  """A clock that goes on by what is added to it."""
  now = [1_000.0]
  monkeypatch.setattr(time_use.time, 'time', lambda: now[0])
  monkeypatch.setattr(time_use.time, 'monotonic', lambda: now[0])
  return now


def test_every_second_goes_to_one_use(ticking, monkeypatch):
  monkeypatch.setattr(time_use, '_clock', Clock(started_at=990.0))
  for use, seconds in ((Use.COMPILE, 5), (Use.STEP, 7), (Use.CHECKPOINT, 2), (Use.STEP, 1)):
    time_use.clock().begin(use)
    ticking[0] += seconds
  with time_use.within(Use.DATA):
    ticking[0] += 3
  ticking[0] += 4  # of a step again
  found = {use: seconds for use, seconds in time_use.clock().seconds().items() if seconds}
  assert found == {Use.START: 10, Use.COMPILE: 5, Use.STEP: 12, Use.CHECKPOINT: 2, Use.DATA: 3}
  assert sum(found.values()) == ticking[0] - 990


def test_the_time_between_processes_is_idle(ticking, monkeypatch, tmp_path):
  """Two processes; of each the last record counts."""
  for started_at in (1_000.0, 1_100.0):
    ticking[0] = started_at
    monkeypatch.setattr(time_use, '_clock', Clock(started_at))
    with MetricsWriter(tmp_path) as writer:
      time_use.clock().begin(Use.STEP)
      for _ in range(3):
        ticking[0] += 20
        writer.time_use()
  assert read_time_use(tmp_path) == {**dict.fromkeys(Use, 0.0), 'step': 120.0, 'idle': 40.0}


def test_the_process_has_begun_before_this_test():
  assert 0 < time.time() - time_use.process_started_at() < 24 * 3_600
