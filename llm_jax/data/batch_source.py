"""What training takes its batches from, and the position in it that a checkpoint keeps."""
import dataclasses
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class DataPosition:
  """Where a stage is in its training data.

  samples: rows that were given out.
  fingerprint: what determines these rows, by component.
  """
  samples: int
  fingerprint: dict[str, str]

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> 'DataPosition':
    return cls(int(fields['samples']), dict(fields['fingerprint']))


class BatchSource(Protocol):
  """Endless batches of a stage's training data, the same ones whatever the number of processes and restarts."""

  @property
  def fingerprint(self) -> dict[str, str]:
    """What determines the batches, by component: two sources with one fingerprint give the same."""
    ...

  def next(self, state: Any = None) -> Any:
    """The next batch. state: the training state, for sources that learn from the model."""
    ...

  def position(self) -> DataPosition: ...

  def restore(self, position: DataPosition) -> None:
    """Goes on after `position`.

    Raises:
      ConfigError: it belongs to other data; the message names what changed, old and new.
    """
    ...

  def close(self) -> None:
    """Stops what reads ahead; `next` may be called again."""
    ...
