"""The numbers of a run on disk: `metrics.jsonl` and `generations.jsonl`, one JSON object a line, and TensorBoard's
files.

A record is `{"kind", "stage", "step", "time", ...numbers}` where `step` counts the finished steps of its stage and
`time` is Unix seconds. Floats are written so that reading gives the same bits back; NaN and infinities are written as
Python's `json` does (`NaN`, `Infinity`).
"""
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

METRICS, GENERATIONS, TENSORBOARD = 'metrics.jsonl', 'generations.jsonl', 'tensorboard'


class MetricsWriter:
  """Writes the records of a run. Only the primary process writes; on the others every call does nothing.

  A disk that fails never stops training: the first failure of each kind is logged once, later records are still tried.
  """

  def __init__(self, workdir: str | os.PathLike, *, primary: bool = True, tensorboard: bool = True):
    self.workdir = pathlib.Path(workdir)
    self._primary, self._tensorboard = primary, tensorboard and primary
    self._boards: dict[str, Any] = {}
    self._purge: dict[str, int] = {}
    self._torn: set[str] = {METRICS, GENERATIONS}  # files whose last line may be half a record
    self._warned: set[str] = set()

  def write(self, kind: str, stage: str, step: int, **numbers: Any) -> None:
    """Appends a record. Numbers may be Python's, NumPy's or jax scalars; strings are kept in the file only."""
    if not self._primary:
      return
    record = {'kind': kind, 'stage': stage, 'step': int(step), 'time': time.time(),
              **{name: _plain(value) for name, value in numbers.items()}}
    self._append(METRICS, record)
    if self._tensorboard:
      self._attempt(TENSORBOARD, lambda: self._scalars(record))

  def generation(self, stage: str, step: int, prompt: str, text: str) -> None:
    """Appends what the model wrote: `text` goes on where `prompt` ends."""
    if self._primary:
      self._append(GENERATIONS, {'stage': stage, 'step': int(step), 'prompt': prompt, 'text': text})

  def rewind(self, stage: str, step: int) -> None:
    """Forgets what came after `step` of `stage`, so that a resumed run's files read as one run never stopped.

    Other stages keep theirs. Each file is replaced at once, so a kill in between leaves the old one. Half a line left
    by a kill is dropped.
    """
    if not self._primary:
      return

    def kept(record: dict[str, Any]) -> bool:
      return record.get('stage') != stage or record['step'] <= step

    for name in (METRICS, GENERATIONS):
      self._attempt(name, lambda name=name: _rewrite(self.workdir / name, kept))
    self._attempt(TENSORBOARD, lambda: self._rewind_boards(stage, step))

  def close(self) -> None:
    """Flushes TensorBoard; the files need nothing."""
    for board in self._boards.values():
      self._attempt(TENSORBOARD, board.close)
    self._boards.clear()

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def _append(self, name: str, record: dict[str, Any]) -> None:
    def append():
      path = self.workdir / name
      start = '\n' if name in self._torn and _ends_mid_line(path) else ''
      self._torn.add(name)
      # Opened anew each time (some 20 microseconds), so that a folder that is gone is noticed.
      with open(path, 'a', encoding='utf-8') as f:
        f.write(start + json.dumps(record) + '\n')
      self._torn.discard(name)
    self._attempt(name, append)

  def _scalars(self, record: dict[str, Any]) -> None:
    stage, step = record['stage'], record['step']
    if stage not in self._boards:
      from tensorboardX import SummaryWriter
      # A folder a stage: TensorBoard shows stages as runs, and forgets a resumed stage's later steps by purge_step.
      # The suffix keeps a run that resumes within a second from overwriting the file before it.
      self._boards[stage] = SummaryWriter(str(self.workdir / TENSORBOARD / stage), flush_secs=20,
                                          purge_step=self._purge.pop(stage, None),
                                          filename_suffix=f'.{time.time_ns()}')
    of_source = f'/{record["source"]}' if 'source' in record else ''
    for name, value in record.items():
      if name not in ('kind', 'stage', 'step', 'time') and isinstance(value, int | float):
        self._boards[stage].add_scalar(f'{record["kind"]}/{name}{of_source}', value, step, walltime=record['time'])

  def _rewind_boards(self, stage: str, step: int) -> None:
    self.close()
    self._purge[stage] = step + 1

  def _attempt(self, what: str, action: Callable[[], Any]) -> None:
    try:
      action()
    except Exception as error:  # whatever goes wrong with a log, training goes on
      if what not in self._warned:
        self._warned.add(what)
        logging.getLogger(__name__).warning('cannot write %s (%s): training goes on, records may be missing',
                                            self.workdir / what, f'{type(error).__name__}: {error}')


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """The records of `metrics.jsonl` in order; lines that are not whole are passed over. No file: an empty list."""
  return list(_records(pathlib.Path(workdir) / METRICS))


def read_generations(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """The records of `generations.jsonl` in order, read like `read_metrics`."""
  return list(_records(pathlib.Path(workdir) / GENERATIONS))


def _records(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  if not path.exists():
    return
  with open(path, encoding='utf-8', errors='replace') as f:
    for line in f:
      try:
        record = json.loads(line)
      except ValueError:
        continue
      if isinstance(record, dict) and isinstance(record.get('step'), int):
        yield record


def _rewrite(path: pathlib.Path, kept: Callable[[dict[str, Any]], bool]) -> None:
  if not path.exists():
    return
  temporary = path.with_name(path.name + '.tmp')
  with open(temporary, 'w', encoding='utf-8') as f:
    f.writelines(json.dumps(record) + '\n' for record in _records(path) if kept(record))
    f.flush()
    os.fsync(f.fileno())
  os.replace(temporary, path)


def _ends_mid_line(path: pathlib.Path) -> bool:
  if not path.exists() or path.stat().st_size == 0:
    return False
  with open(path, 'rb') as f:
    f.seek(-1, os.SEEK_END)
    return f.read(1) != b'\n'


def _plain(value: Any) -> Any:
  """A JSON value: lists and mappings of such, scalars of NumPy and jax through `item()`, which keeps them exactly."""
  if isinstance(value, dict):
    return {str(name): _plain(each) for name, each in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(each) for each in value]
  value = value.item() if hasattr(value, 'item') else value
  return value if isinstance(value, bool | int | float | str | None) else str(value)