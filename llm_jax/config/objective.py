"""What every objective states, and how its numbers are shown."""
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from llm_jax.config.rows import RowKind
from llm_jax.config.teachers import Teacher


@dataclasses.dataclass(frozen=True)
class Metric:
  """A number of the validation split, and how it is shown. A format takes the number.

  name: under which records have it.
  label: what tables call it.
  table, status, headline: its formats in tables, beside the loss in the terminal, and in the stage's box of the
    report's recipe.
  """
  name: str
  label: str
  table: str
  status: str
  headline: str


LOSS = Metric('loss', 'loss', '{:.4f}', 'loss {:.4f}', 'held-out loss {:.3f}')


class ObjectiveConfig:
  """What every objective states beside its own fields.

  implementation: the class that computes it, 'package.module:Class'.
  rows: the kind of rows that it learns from.   other_rows: kinds that it learns from too.
  title: what the report's recipe calls it.
  reference_passes: forward passes of a batch that its loss takes beside the one that is differentiated, such as the
    reference's.
  has_reference: whether it compares with the parameters that the stage starts from, which stay as they are.
  reads_margins: whether it heeds what a row says of how much better one of two answers is.
  reads_soft_labels: whether it heeds what a row says of how probable it is that one of two answers is better.
  metrics: what a person looks at first, beside the loss.
  """
  implementation: ClassVar[str]
  rows: ClassVar[RowKind]
  other_rows: ClassVar[tuple[RowKind, ...]] = ()
  title: ClassVar[str]
  reference_passes: ClassVar[int] = 0
  has_reference: ClassVar[bool] = False
  reads_margins: ClassVar[bool] = False
  reads_soft_labels: ClassVar[bool] = False

  @property
  def distilled(self) -> Teacher | None:
    """The model whose probabilities are learnt; None where none is."""
    return None

  metrics: ClassVar[tuple[Metric, ...]] = ()

  def status(self, found: Mapping[str, Any]) -> str:
    """The loss and what is known of `metrics`, as the terminal shows them."""
    return '  '.join(
      metric.status.format(found[metric.name]) for metric in (LOSS, *self.metrics) if metric.name in found
    )

  def headline(self, found: Mapping[str, Any]) -> str:
    """What is known of `metrics` in a few words, or else the loss."""
    known = [metric for metric in self.metrics if metric.name in found]
    return ', '.join(metric.headline.format(found[metric.name]) for metric in known or [LOSS])
