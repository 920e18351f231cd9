"""What trackers of services have in common: they cannot forget a record, and may be asked for again later."""
import json
import pathlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from llm_jax.config import schema
from llm_jax.runtime.files import write_atomic
from llm_jax.tracking.jsonl import read_jsonl
from llm_jax.tracking.tracker import Record, TrackedRun

FOLDER = 'trackers'  # of the run's folder: a file for each service
STEP = 'global_step'  # steps of all stages before, and of this one: the axis of the curves


class Service(Protocol):
  """Somewhere outside of the run's folder that keeps rows of numbers, one run of it for a run."""

  @property
  def name(self) -> str:
    """A plain word: a file is called like it."""
    ...

  def open(self, run_id: str, is_new: bool) -> None:
    """Begins the run of that id, or goes on with it."""
    ...

  def log(self, numbers: Mapping[str, float], step: int, time: float) -> None:
    """Keeps a row.   step: the place on the axis of the curves.   time: Unix seconds."""
    ...

  def close(self) -> None:
    """Sends what is not sent; `open` may be called again."""
    ...


class ServiceTracker:
  """Writes the numbers of records to a service, under `STAGE/kind/name`.

  A resumed run goes on in the service's run, whose id `trackers/NAME.json` has. A service cannot forget: steps
  that a resumed run trains again have the same numbers, so they are not sent again. A run of the service that begins
  later than `metrics.jsonl` is first sent what that holds.
  """

  def __init__(self, service: Service, tracked: TrackedRun):
    self._service = service
    self._tracked = tracked
    self._path = tracked.workdir / FOLDER / f'{service.name}.json'
    self._run_id = ''
    self._is_open = False
    self._is_broken = False
    self._sent: dict[str, int] = {}  # the last step that the service has, by the name of a number

  @property
  def name(self) -> str:
    return self._service.name

  def write(self, record: Record) -> None:
    if self._is_broken:
      return
    self._open(before=record)
    self._log(record)

  def rewind(self, stage: str, step: int, forgotten: Sequence[Record]) -> None:
    if self._is_broken:
      return
    self._open()
    for record in forgotten:
      for name in self._named(record):
        self._sent[name] = max(record.step, self._sent.get(name, record.step))
    self._note()

  def close(self) -> None:
    if self._is_open:
      self._is_open = False
      self._service.close()

  def _log(self, record: Record) -> None:
    numbers = {name: value for name, value in self._named(record).items() if record.step > self._sent.get(name, -1)}
    if numbers:
      step = self._tracked.steps_before(record.stage) + record.step
      self._service.log(numbers, step, record.time)

  def _named(self, record: Record) -> dict[str, float]:
    return {f'{record.stage}/{name}': value for name, value in record.numbers().items()}

  def _open(self, before: Record | None = None) -> None:
    """The service is asked once: each try may take as long as a network is waited for.

    before: the record that is written next, which `metrics.jsonl` has already.
    """
    if self._is_open:
      return
    noted = read_note(self._path)
    try:
      if noted is not None:
        run_id, self._sent = noted
        self._service.open(run_id, is_new=False)
      else:
        run_id = secrets.token_hex(4)
        self._service.open(run_id, is_new=True)
        self._catch_up(before)
    except Exception:
      self._is_broken = True
      raise
    self._is_open = True
    self._run_id = run_id
    self._note()

  def _catch_up(self, before: Record | None) -> None:
    """Sends what the run has written so far."""
    stages = {stage.name for stage in self._tracked.run.stages}
    for entry in read_jsonl(self._tracked.workdir / 'metrics.jsonl'):
      record = Record.from_json(entry)
      is_next = before is not None and before.place == record.place
      if record.stage in stages and not is_next:
        self._log(record)

  def _note(self) -> None:
    self._path.parent.mkdir(exist_ok=True)
    write_atomic(self._path, json.dumps({'id': self._run_id, 'sent': self._sent}) + '\n')


def read_note(path: pathlib.Path) -> tuple[str, dict[str, int]] | None:
  """The id of the service's run, and the last step that it has of each number that may come again; None: no run."""
  try:
    note = json.loads(path.read_bytes())
    return str(note['id']), {str(name): int(step) for name, step in note['sent'].items()}
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return None


def describe(tracked: TrackedRun) -> dict[str, Any]:
  """The configuration of a run for a service, its stages by name, and where it was made."""
  config = schema.to_json(tracked.run)
  config['stages'] = {stage['name']: stage for stage in config['stages']}
  return {**config, 'lineage': dict(tracked.lineage)}


def title(tracked: TrackedRun) -> str:
  """What a service calls the run: the name of its folder, and which branch it is where it went back to an earlier step.
  """
  branches = len(tracked.lineage.get('branches', ()))
  name = tracked.workdir.absolute().name
  return f'{name}-branch-{branches}' if branches else name
