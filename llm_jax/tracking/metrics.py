"""The numbers of a run: `metrics.jsonl` and `generations.jsonl`, one JSON object a line, and the trackers that its
configuration names.

A record is `{"kind", "stage", "step", "time", ...numbers}` where `step` counts the finished steps of its stage and
`time` is Unix seconds. Floats are written so that reading gives the same bits back; NaN and infinities are written as
Python's `json` does (`NaN`, `Infinity`).
"""
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from llm_jax.config.implementation import load
from llm_jax.config.type_hints import is_mapping, is_sequence
from llm_jax.runtime import time_use
from llm_jax.runtime.buckets import place
from llm_jax.tracking.jsonl import damaged_lines, open_jsonl, read_jsonl
from llm_jax.tracking.tracker import Record, TrackedRun, Tracker

METRICS = 'metrics.jsonl'
GENERATIONS = 'generations.jsonl'
TIME_USE = 'time_use.jsonl'
MOST_LINES_NAMED = 8


def make_trackers(tracked: TrackedRun) -> list[Tracker]:
  """Those that the run's configuration names. Nothing is written or asked for yet."""
  return [load(config)(config, tracked) for config in tracked.run.trackers]


class MetricsWriter:
  """Writes the records of a run to `metrics.jsonl` and to its trackers. Only the primary process writes; on the others
  every call does nothing.

  A disk or a service that fails never stops training: the first failure of each tracker is logged, later records are
  still tried.
  """

  def __init__(self, workdir: str | os.PathLike[str], trackers: Sequence[Tracker] = (), *, primary: bool = True):
    folder = place(workdir)
    self._primary = primary
    self._metrics = open_jsonl(folder / METRICS)
    self._generations = open_jsonl(folder / GENERATIONS)
    self._time_use = open_jsonl(folder / TIME_USE)
    self._trackers = trackers
    self._failed: set[str] = set()
    self._position: dict[str, Any] = {'stage': '', 'step': 0}  # of the newest record

  def write(self, kind: str, stage: str, step: int, **numbers: Any) -> None:
    """Appends a record. Numbers may be Python's, NumPy's or jax scalars, or lists and mappings of them; trackers
    leave out all that is no number."""
    if not self._primary:
      return
    values = {name: _plain(value) for name, value in numbers.items()}
    record = Record(kind, stage, int(step), time.time(), values)
    self._position = {'stage': stage, 'step': record.step}
    for tracker in (self._metrics, *self._trackers):
      self._attempt(tracker, lambda tracker=tracker: tracker.write(record))

  def generation(self, stage: str, step: int, prompt: str, text: str) -> None:
    """Appends what the model wrote: `text` goes on where `prompt` ends."""
    if not self._primary:
      return
    entry = {'stage': stage, 'step': int(step), 'prompt': prompt, 'text': text}
    self._attempt(self._generations, lambda: self._generations.append(entry))

  def time_use(self) -> None:
    """Appends what the time of this process went to up to now, see `time_use.py`."""
    if not self._primary:
      return
    clock = time_use.clock()
    entry = {**self._position, 'started_at': clock.started_at, 'seconds': clock.seconds()}
    self._attempt(self._time_use, lambda: self._time_use.append(entry))

  def rewind(self, stage: str, step: int) -> int:
    """Forgets what came after `step` of `stage`, so that a resumed run's files read as one run never stopped. Other
    stages keep theirs. Returns the last step that it forgets, or `step`."""
    if not self._primary:
      return step
    forgotten = [Record.from_json(entry) for entry in read_jsonl(self._metrics.path)
                 if entry.get('stage') == stage and entry['step'] > step]
    # The trackers first: those that cannot forget note what `metrics.jsonl` still says that they have.
    for tracker in (*self._trackers, self._metrics, self._generations):
      self._attempt(tracker, lambda tracker=tracker: tracker.rewind(stage, step, forgotten))
    return max((record.step for record in forgotten), default=step)

  def flush(self) -> None:
    """Waits until all records are safe from a kill: a step that is saved is not trained again, nor written again."""
    if self._primary:
      self._attempt(self._metrics, self._metrics.flush)

  def close(self) -> None:
    """Lets the trackers keep what they have not kept yet."""
    if not self._primary:
      return
    for tracker in (self._metrics, self._generations, self._time_use, *self._trackers):
      self._attempt(tracker, tracker.close)

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    self.close()

  def _attempt(self, tracker: Tracker, action: Callable[[], None]) -> None:
    try:
      action()
    except Exception as error:  # whatever goes wrong with a tracker, training goes on
      if tracker.name not in self._failed:
        self._failed.add(tracker.name)
        logging.getLogger(__name__).warning('cannot write %s (%s): training goes on, records may be missing',
                                            tracker.name, f'{type(error).__name__}: {error}')


def read_metrics(workdir: str | os.PathLike[str], kind: str | None = None) -> list[dict[str, Any]]:
  """The records of `metrics.jsonl` in order; lines that are not whole are passed over. No file: an empty list.

  kind: of the records; None: all. The few of a rare kind are found without parsing a line for every step.
  """
  path = place(workdir) / METRICS
  if kind is None:
    return list(read_jsonl(path))
  return [record for record in read_jsonl(path, json.dumps(kind)) if record['kind'] == kind]


def read_time_use(workdir: str | os.PathLike[str]) -> dict[str, float]:
  """Seconds of the run's wall time by what they went to, from the start of its first process to the last record of its
  last one. 'idle' is the time between two of them, with what the first has not written down any more."""
  newest: dict[float, dict[str, float]] = {}
  for entry in read_jsonl(place(workdir) / TIME_USE):
    newest[entry['started_at']] = entry['seconds']
  seconds: dict[str, float] = {}
  ended_at = None
  for started_at, spent in sorted(newest.items()):
    if ended_at is not None:
      seconds['idle'] = seconds.get('idle', 0.0) + max(0.0, started_at - ended_at)
    ended_at = started_at + sum(spent.values())
    for use, number in spent.items():
      seconds[use] = seconds.get(use, 0.0) + number
  return seconds


def warn_of_damage(workdir: str | os.PathLike[str]) -> None:
  """Names the lines of the records that are not as they were written. Those after the newest checkpoint come again."""
  for name in (METRICS, GENERATIONS):
    path = place(workdir) / name
    damaged = damaged_lines(path)
    if damaged:
      shown = ', '.join(map(str, damaged[:MOST_LINES_NAMED]))
      more = f' and {len(damaged) - MOST_LINES_NAMED} more' if len(damaged) > MOST_LINES_NAMED else ''
      logging.getLogger(__name__).warning('%s: damaged in line %s%s, passed over: steps that are trained again are '
                                          'written again, the others are missing', path, shown, more)


def read_generations(workdir: str | os.PathLike[str], stage: str | None = None) -> list[dict[str, Any]]:
  """The records of `generations.jsonl` in order, read like `read_metrics`.   stage: of the records; None: all."""
  path = place(workdir) / GENERATIONS
  if stage is None:
    return list(read_jsonl(path))
  return [record for record in read_jsonl(path, json.dumps(stage)) if record['stage'] == stage]


def _plain(value: Any) -> Any:
  """A JSON value: lists and mappings of such, scalars of NumPy and jax through `item()`, which keeps them exactly."""
  if is_mapping(value):
    return {str(name): _plain(each) for name, each in value.items()}
  if is_sequence(value):
    return [_plain(each) for each in value]
  if hasattr(value, 'item'):
    value = value.item()
  is_json = isinstance(value, bool | int | float | str | None)
  return value if is_json else str(value)
