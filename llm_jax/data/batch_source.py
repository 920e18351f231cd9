"""What training takes its batches from, and the position in it that a checkpoint keeps."""
import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class DataPosition:
  """Where a stage is in its training data.

  samples: rows that were given out.
  fingerprint: what determines these rows, by component.
  tokens: that were in them, where no two batches have as many; else 0.
  """
  samples: int
  fingerprint: dict[str, str]
  tokens: int = 0

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> 'DataPosition':
    return cls(int(fields['samples']), dict(fields['fingerprint']), int(fields.get('tokens', 0)))


class BatchSource(Protocol):
  """Endless batches of a stage's training data, the same ones whatever the number of processes and restarts."""

  @property
  def fingerprint(self) -> dict[str, str]:
    """What determines the batches, by component: two sources with one fingerprint give the same."""
    ...

  def next(self, state: Any = None, frozen: Any = None) -> Any:
    """The next batch. state, frozen: the training state, and what the steps read and never change, for sources that
    ask the model."""
    ...

  def numbers(self) -> dict[str, Any]:
    """What is to be recorded beside the metrics of the last batch's step, NumPy scalars by name."""
    return {}

  def position(self) -> DataPosition: ...

  def arrays(self) -> dict[str, Any]:
    """What must be saved beside the position, since it cannot be made again: jax arrays by name."""
    return {}

  def restore(self, position: DataPosition, arrays: Mapping[str, Any] | None = None) -> None:
    """Goes on after `position`.   arrays: those that were saved beside it.

    Raises:
      ConfigError: it belongs to other data; the message names what changed, old and new.
    """
    ...

  def close(self) -> None:
    """Stops what reads ahead; `next` may be called again."""
    ...
