"""What keeps the records of a run: the record, and the protocol of everything that they are written to."""
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from llm_jax.config.run import Run


@dataclasses.dataclass(frozen=True)
class Record:
  """Numbers of one step.

  kind: 'train', 'eval', 'final', 'data', 'display' or 'event'.
  step: finished steps of the stage.
  time: Unix seconds.
  values: numbers and texts by name, and lists of these, as JSON has them.
  """
  kind: str
  stage: str
  step: int
  time: float
  values: Mapping[str, Any]

  @property
  def place(self) -> tuple[str, str, int, float]:
    """What tells it from others."""
    return self.kind, self.stage, self.step, self.time

  def to_json(self) -> dict[str, Any]:
    return {'kind': self.kind, 'stage': self.stage, 'step': self.step, 'time': self.time, **self.values}

  @classmethod
  def from_json(cls, entry: Mapping[str, Any]) -> 'Record':
    """Of an object that has a step; what else a damaged line may lack is empty."""
    own = ('kind', 'stage', 'step', 'time')
    values = {name: value for name, value in entry.items() if name not in own}
    return cls(entry.get('kind', ''), entry.get('stage', ''), entry['step'], entry.get('time', 0.0), values)

  def numbers(self) -> dict[str, float]:
    """Its numbers as trackers name them: `kind/name`, or `kind/name/source` where they are of one source."""
    source = self.values.get('source')
    suffix = '' if source is None else f'/{source}'
    return {f'{self.kind}/{name}{suffix}': float(value)
            for name, value in self.values.items() if isinstance(value, int | float)}


@dataclasses.dataclass(frozen=True)
class TrackedRun:
  """What a tracker may tell of a run.

  lineage: where and with what it was made, as `lineage.json` has it.
  """
  run: Run
  workdir: pathlib.Path
  lineage: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])

  def steps_before(self, stage: str) -> int:
    """Steps of the stages before the one of that name, as the configuration counts them."""
    names = [each.name for each in self.run.stages]
    return sum(each.steps for each in self.run.stages[:names.index(stage)])


class Tracker(Protocol):
  """Somewhere that records are kept: a file, TensorBoard, a service. `MetricsWriter` writes every record to each.

  Its methods may raise anything: the first error is logged, and training goes on.
  """

  @property
  def name(self) -> str:
    """What the log calls it when it fails, such as its path."""
    ...

  def write(self, record: Record) -> None: ...

  def rewind(self, stage: str, step: int, forgotten: Sequence[Record]) -> None:
    """Forgets what came after `step` of `stage`, and nothing of other stages.

    forgotten: the records of that, for a tracker that cannot forget.
    """
    ...

  def close(self) -> None:
    """Keeps what is not kept yet; `write` may be called again."""
    ...
