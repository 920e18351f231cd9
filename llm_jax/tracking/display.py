"""What an evaluation shows, as data: the report draws these blocks without knowing who made them.

A block is written to `metrics.jsonl` as a mapping of its fields with the class's name under `kind`.
"""
import dataclasses
from typing import Any

from llm_jax.config.type_hints import is_sequence


@dataclasses.dataclass(frozen=True)
class HeatMap:
  """Shares (0 to 1) by row and column.

  section: the heading under which the report gathers it, with `note` below.   title: of this one, such as the stage.
  columns: their labels.   rows: (label, one share a column).
  """
  section: str
  note: str
  title: str
  columns: tuple[str, ...]
  rows: tuple[tuple[str, tuple[float, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Table:
  """Cells of text, under `section` with `note` below.   head: the columns' labels."""
  section: str
  note: str
  title: str
  head: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Curves:
  """Metrics over the steps of a stage, which the report finds in its records; under `section` with `note` below.

  stage: its name.   label: of the vertical axis.   lines: (label, name of the metric).
  """
  section: str
  note: str
  title: str
  stage: str
  label: str
  lines: tuple[tuple[str, str], ...]


Block = HeatMap | Table | Curves
KINDS: dict[str, type[Block]] = {kind.__name__: kind for kind in (HeatMap, Table, Curves)}


def to_record(block: Block) -> dict[str, Any]:
  """JSON values; `from_record` gives back an equal block."""
  return {'kind': type(block).__name__, **dataclasses.asdict(block)}


def from_record(record: dict[str, Any]) -> Block | None:
  """The block of a record; None for one that this version does not know or that is damaged."""
  fields = {name: _tuples(value) for name, value in record.items() if name != 'kind'}
  kind = KINDS.get(str(record.get('kind')))
  if kind is None:
    return None
  try:
    return kind(**fields)
  except TypeError:
    return None


def _tuples(value: Any) -> Any:
  if is_sequence(value):
    return tuple(_tuples(item) for item in value)
  return value
