"""What a report is made of: the files of a run, its records stage by stage, and their numbers."""
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
from llm_jax.tracking.metrics import read_generations, read_metrics, read_time_use
from llm_jax.tracking.numbers import value

MetricsRecord = Mapping[str, Any]  # a line of metrics.jsonl


@dataclasses.dataclass(frozen=True)
class StageRecords:
  """What one stage recorded.

  config: its part of config.json, or {}.
  offset: steps of the stages before it.
  """
  name: str
  config: Mapping[str, Any]
  offset: int
  train: Sequence[MetricsRecord]
  evals: Sequence[MetricsRecord]

  @property
  def last_step(self) -> int:
    return max((record['step'] for record in (*self.train, *self.evals)), default=0)

  @property
  def tokens(self) -> int | None:
    """Tokens trained on; None where nobody knows."""
    recorded = last(self.train, 'tokens')
    if math.isfinite(recorded):
      return int(recorded)
    batch_size = self.config.get('batch_size')
    seq_len = self.config.get('seq_len')
    if isinstance(batch_size, int) and isinstance(seq_len, int):
      return self.last_step * batch_size * seq_len
    return None

  @property
  def seconds(self) -> float:
    """Spent in steps: evaluations, checkpoints and the time between a kill and its resume do not count."""
    total = 0.0
    last_step = 0
    for record in self.train:
      seconds = value(record, 'step_seconds')
      if math.isfinite(seconds):
        total += seconds * (record['step'] - last_step)
      last_step = record['step']
    return total

  @property
  def reach(self) -> int:
    """How many records to either side a smoothed curve looks: 2 % of the stage, none where that is less than one."""
    return len(self.train) // 50

  @property
  def is_language_model(self) -> bool:
    """Whether its loss is in nats per token, as that of next-token prediction is."""
    return isinstance(objective_of(self.config), LanguageModel)

  def values(self, name: str) -> list[float]:
    """The numbers of that name of every training record; NaN where one has none."""
    return [value(record, name) for record in self.train]


def objective_of(stage: Mapping[str, Any]) -> Objective:
  """What a stage of config.json learns; next-token prediction where it says nothing that this version can read."""
  kinds: Any = Objective  # a union
  try:
    return schema.read(kinds, stage.get('objective'), 'objective')
  except ConfigError:
    return LanguageModel()


@dataclasses.dataclass(frozen=True)
class RunRecords:
  """A run's files, read. Whatever is missing or damaged is empty.

  config, lineage: config.json and lineage.json.
  time_use: seconds of the run's wall time by what they went to.
  """
  workdir: pathlib.Path
  config: Mapping[str, Any]
  lineage: Mapping[str, Any]
  metrics: Sequence[MetricsRecord]
  generations: Sequence[Mapping[str, Any]]
  time_use: Mapping[str, float]
  stages: Sequence[StageRecords]

  def of_kind(self, kind: str) -> list[MetricsRecord]:
    return [record for record in self.metrics if record.get('kind') == kind]

  @property
  def stage_configs(self) -> list[Mapping[str, Any]]:
    return _stage_configs(self.config)


def read_run(workdir: pathlib.Path) -> RunRecords:
  config = read_json(workdir / 'config.json')
  metrics = read_metrics(workdir)
  return RunRecords(workdir, config, read_json(workdir / 'lineage.json'), metrics, read_generations(workdir),
                    read_time_use(workdir), _by_stage(metrics, config))


def loss_label(stages: Iterable[StageRecords]) -> str:
  """How a chart of the losses of these stages names its axis: where one learns pairs or classes there is no unit."""
  unit = 'nats per token' if all(stage.is_language_model for stage in stages) else "the objective's loss"
  return f'{unit} (log scale)'


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object, or {} where there is none that can be read."""
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return {}
  return content if isinstance(content, dict) else {'content': content}


def last(records: Iterable[MetricsRecord], name: str) -> float:
  """The last finite number of that name, or NaN."""
  for record in reversed(list(records)):
    found = value(record, name)
    if math.isfinite(found):
      return found
  return math.nan


def median(stages: Sequence[StageRecords], name: str) -> float:
  """Of all finite numbers of that name, or NaN."""
  numbers = [number for stage in stages for number in stage.values(name) if math.isfinite(number)]
  return statistics.median(numbers) if numbers else math.nan


def _stage_configs(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  return [stage for stage in config.get('stages', []) if isinstance(stage, dict)]


def _by_stage(metrics: Sequence[MetricsRecord], config: Mapping[str, Any]) -> list[StageRecords]:
  """Stages in the order of the configuration, then of their names."""
  configs = {stage.get('name'): stage for stage in _stage_configs(config)}
  recorded = {str(record.get('stage')) for record in metrics if record.get('kind') in ('train', 'eval')}
  configured = [name for name in configs if name in recorded]
  others = sorted(recorded - configs.keys())
  stages: list[StageRecords] = []
  offset = 0
  for name in (*configured, *others):
    of_stage = [record for record in metrics if record.get('stage') == name]
    train = [record for record in of_stage if record.get('kind') == 'train']
    evals = [record for record in of_stage if record.get('kind') in ('eval', 'final') and 'loss' in record]
    stage = StageRecords(name, configs.get(name, {}), offset, _one_per_step(train), _one_per_step(evals))
    stages.append(stage)
    offset += stage.last_step
  return stages


def _one_per_step(records: Iterable[MetricsRecord]) -> list[MetricsRecord]:
  """By step; of two records of a step the later counts."""
  of_step = {record['step']: record for record in records}
  return [of_step[step] for step in sorted(of_step)]
