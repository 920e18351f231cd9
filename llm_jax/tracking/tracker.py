"""What keeps the records of a run: the record, and the protocol of everything that they are written to."""
import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol


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

  def to_json(self) -> dict[str, Any]:
    return {'kind': self.kind, 'stage': self.stage, 'step': self.step, 'time': self.time, **self.values}


class Tracker(Protocol):
  """Somewhere that records are kept: a file, TensorBoard, a service. `MetricsWriter` writes every record to each.

  Its methods may raise anything: the first error is logged, and training goes on.
  """

  @property
  def name(self) -> str:
    """What the log calls it when it fails, such as its path."""
    ...

  def write(self, record: Record) -> None: ...

  def rewind(self, stage: str, step: int) -> None:
    """Forgets what came after `step` of `stage`, and nothing of other stages."""
    ...

  def close(self) -> None:
    """Keeps what is not kept yet; `write` may be called again."""
    ...
