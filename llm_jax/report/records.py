"""What a report is made of: the records of a run, stage by stage, and how their numbers are shown."""
import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llm_jax.config import schema
from llm_jax.config.errors import ConfigError
from llm_jax.config.objectives import LanguageModel, Objective
from llm_jax.tracking.numbers import value


@dataclasses.dataclass
class StageRecords:
  """What one stage recorded. offset: steps of the stages before it; config: its part of config.json, or {}."""
  name: str
  config: dict[str, Any]
  offset: int
  train: list[dict[str, Any]]
  evals: list[dict[str, Any]]

  @property
  def last_step(self) -> int:
    return max((r['step'] for r in self.train + self.evals), default=0)

  @property
  def tokens(self) -> int | None:
    if math.isfinite(tokens := last(self.train, 'tokens')):
      return int(tokens)
    batch_size = self.config.get('batch_size')
    seq_len = self.config.get('seq_len')
    if isinstance(batch_size, int) and isinstance(seq_len, int):
      return self.last_step * batch_size * seq_len
    return None

  @property
  def seconds(self) -> float:
    """Spent in steps: evaluations, checkpoints and the time between a kill and its resume do not count."""
    total, before = 0.0, 0
    for record in self.train:
      if math.isfinite(seconds := value(record, 'step_seconds')):
        total += seconds * (record['step'] - before)
      before = record['step']
    return total


def objective_of(stage: Mapping[str, Any]) -> Objective:
  """What a stage of config.json learns; next-token prediction where it says nothing that this version can read."""
  try:
    return schema.read(Objective, stage.get('objective'), 'objective')
  except ConfigError:
    return LanguageModel()


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object, or {} where there is none that can be read."""
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return {}
  return content if isinstance(content, dict) else {'content': content}


def by_stage(records: Sequence[dict[str, Any]], config: dict[str, Any]) -> list[StageRecords]:
  """Stages in the order of the configuration, then of appearance; of two records of a step the later counts."""
  configs = {s.get('name'): s for s in config.get('stages', []) if isinstance(s, dict)}
  seen = {str(r.get('stage')) for r in records if r.get('kind') in ('train', 'eval')}
  stages, offset = [], 0
  for name in [*(n for n in configs if n in seen), *sorted(seen - configs.keys())]:
    mine = [r for r in records if r.get('stage') == name]
    train = {r['step']: r for r in mine if r.get('kind') == 'train'}
    evals = {r['step']: r for r in mine if r.get('kind') in ('eval', 'final') and 'loss' in r}
    train, evals = ([found[step] for step in sorted(found)] for found in (train, evals))
    stages.append(StageRecords(name, configs.get(name, {}), offset, train, evals))
    offset += stages[-1].last_step
  return stages


def last(records: Iterable[dict[str, Any]], name: str) -> float:
  """The last finite number of that name, or NaN."""
  return next((x for r in reversed(list(records)) if math.isfinite(x := value(r, name))), math.nan)


def median(stages: Sequence[StageRecords], name: str) -> float:
  numbers = [x for s in stages for r in s.train if math.isfinite(x := value(r, name))]
  return statistics.median(numbers) if numbers else math.nan
