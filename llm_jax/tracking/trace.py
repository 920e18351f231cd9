"""Where the time of some steps went, read from the trace that jax's profiler writes (`*.trace.json.gz`, in Chrome's
trace event format).
"""
import dataclasses
import gzip
import json
import pathlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llm_jax.tracking.operations import (
  ATTENTION,
  COLLECTIVE,
  CONTAINER,
  COPY,
  ELEMENTWISE,
  MATRIX,
  OTHER,
  REDUCTION,
  kind_of_name,
)

STEP = 'train'  # the name of a step's event
OTHER_PROGRAMS = 'other programs: evaluation, saving'
NOTHING = 'host, waiting'
ORDER = (MATRIX, ATTENTION, REDUCTION, ELEMENTWISE, COLLECTIVE, COPY, OTHER, OTHER_PROGRAMS, NOTHING)
MOST_EVENTS = 1_000_000  # that jax writes to such a file; it leaves out the others


@dataclasses.dataclass(frozen=True)
class StepTimes:
  """Seconds of a step by kind of operation, the mean over the steps and the devices; they sum to `step`.

  operations: how many of each kind a step has, on one device.
  is_cut: whether the trace lacks events.
  """
  steps: int
  step: float
  seconds: Mapping[str, float]
  operations: Mapping[str, float]
  is_cut: bool


@dataclasses.dataclass(frozen=True)
class Operation:
  """One run of an operation.   start, end: microseconds."""
  kind: str
  start: float
  end: float


def read_trace(folder: pathlib.Path) -> tuple[pathlib.Path, list[dict[str, Any]]]:
  """The newest trace below a folder, and its events.

  Raises:
    FileNotFoundError: there is none.
  """
  found = sorted(folder.glob('plugins/profile/*/*.trace.json.gz'), key=lambda path: path.stat().st_mtime_ns)
  if not found:
    raise FileNotFoundError(f'{folder}: jax has written no trace')
  with gzip.open(found[-1], 'rt', encoding='utf-8') as file:
    return found[-1], json.load(file)['traceEvents']


def step_times(events: Sequence[Mapping[str, Any]], programs: Mapping[str, Mapping[str, str]]) -> StepTimes:
  """Where the time of the traced steps went. Where several operations of a device run at once, they share the time.

  programs: of the training step: the kind of each operation by its name, by the name of the program (HLO module).

  Raises:
    ValueError: the trace has no step.
  """
  complete = [event for event in events if event.get('ph') == 'X']
  steps = [event for event in complete if event.get('name') == STEP and 'step_num' in event.get('args', {})]
  if not steps:
    raise ValueError('the trace has no step')
  devices = _operations(events, complete, programs)
  begin = min(event['ts'] for event in steps)
  ends = [event['ts'] + event['dur'] for event in steps]
  last = max([*ends, *(operation.end for operations in devices.values() for operation in operations)])
  seconds: dict[str, float] = defaultdict(float)
  counts: dict[str, float] = defaultdict(float)
  share = 1 / len(steps) / max(len(devices), 1)
  for operations in devices.values() or [[]]:
    for kind, duration in _shared(operations, begin, last):
      seconds[kind] += duration * 1e-6 * share
    for operation in operations:
      counts[operation.kind] += share
  return StepTimes(len(steps), (last - begin) * 1e-6 / len(steps), seconds, counts, len(complete) >= MOST_EVENTS)


def table(times: StepTimes) -> list[str]:
  """The times as lines for a terminal."""
  lines = [f'{"":<40}{"ms a step":>12}{"share":>9}{"operations":>12}']
  for kind in ORDER:
    seconds = times.seconds.get(kind, 0.0)
    if seconds > 0:
      operations = f'{times.operations[kind]:,.0f}' if kind in times.operations else ''
      lines.append(f'  {kind:<38}{seconds * 1e3:>12,.2f}{seconds / times.step:>9.1%}{operations:>12}')
  lines.append(f'  {"a step":<38}{times.step * 1e3:>12,.2f}')
  if times.is_cut:
    lines.append(f'  the trace has only {MOST_EVENTS:,} events, and what came after them counts as waiting: take fewer '
                 'steps')
  return lines


def _operations(events: Sequence[Mapping[str, Any]], complete: Sequence[Mapping[str, Any]],
                programs: Mapping[str, Mapping[str, str]]) -> dict[Any, list[Operation]]:
  """What ran on each device: on CPU all devices are one, the machine. On GPU it stands in the streams, on TPU in a row
  of its own called `XLA Ops`."""
  processes = _names(events, 'process_name', 'pid')
  threads = {(event['pid'], event['tid']): event['args']['name'] for event in events
             if event.get('name') == 'thread_name'}
  has_row = {pid for (pid, _), name in threads.items() if name == 'XLA Ops'}
  found: dict[Any, list[Operation]] = defaultdict(list)
  for event in complete:
    pid = event['pid']
    args = event.get('args', {})
    row = threads.get((pid, event.get('tid')), '')
    is_device = processes.get(pid, '').startswith('/device:')
    is_operation = (row == 'XLA Ops' if pid in has_row else row.startswith('Stream')) if is_device else 'hlo_op' in args
    if not is_operation:
      continue
    kind = _kind(args.get('hlo_op', event.get('name', '')), args.get('hlo_module', ''), programs)
    if kind != CONTAINER:
      found[pid].append(Operation(kind, event['ts'], event['ts'] + event['dur']))
  return found


def _names(events: Sequence[Mapping[str, Any]], name: str, key: str) -> dict[Any, str]:
  return {event[key]: event['args']['name'] for event in events if event.get('name') == name}


def _kind(operation: str, program: str, programs: Mapping[str, Mapping[str, str]]) -> str:
  if program and program.partition('(')[0] not in programs:
    return OTHER_PROGRAMS
  for kinds in programs.values():
    if operation in kinds:
      return kinds[operation]
  return kind_of_name(operation)


def _shared(operations: Sequence[Operation], begin: float, end: float) -> Iterator[tuple[str, float]]:
  """(kind, microseconds) that add up to the time from `begin` to `end`."""
  changes: list[tuple[float, int, str]] = []
  for operation in operations:
    start, stop = max(operation.start, begin), min(operation.end, end)
    if stop > start:
      changes += [(start, 1, operation.kind), (stop, -1, operation.kind)]
  running: dict[str, int] = defaultdict(int)
  number = 0
  now = begin
  for time, change, kind in sorted(changes):
    if time > now:
      yield from _split(running, number, time - now)
    running[kind] += change
    number += change
    now = time
  if end > now:
    yield from _split(running, number, end - now)


def _split(running: Mapping[str, int], number: int, duration: float) -> Iterator[tuple[str, float]]:
  if number == 0:
    yield NOTHING, duration
    return
  for kind, count in running.items():
    if count:
      yield kind, duration * count / number
