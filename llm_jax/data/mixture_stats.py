"""What a stage takes from each source of its mixture, as papers print it."""
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax.config.ramp import Phase, spans
from llm_jax.data.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class SourceStats:
  """A row of the table (Brown et al. 2020, GPT-3, table 2.2; Touvron et al. 2023, LLaMA, table 1).

  source: its name.
  num_rows: rows given.
  share: of the tokens that the stage reads, padding included.
  epochs: how often the source is gone through; None where its rows have no end.
  num_bytes, num_tokens: its size, once; of needles that of their haystack.
  """
  source: str
  num_rows: int
  share: float
  epochs: float | None
  num_bytes: int
  num_tokens: int

  def to_record(self) -> dict[str, Any]:
    """The fields by name, for the run's records."""
    return dataclasses.asdict(self)


def mixture_stats(train: Mapping[int, Dataset], phases: Sequence[Phase], num_samples: int) -> list[SourceStats]:
  """The rows of the table after a stage's first samples, exact under schedules and ramps and known before the first;
  [] where there are none.

  train: the stage's training data by sequence length; {} where it learns from its own answers.
  """
  if not num_samples or not train:
    return []
  given = [_given_in(train[phase.seq_len], samples) for phase, samples in spans(phases, num_samples)]
  first = train[phases[0].seq_len]
  tokens: dict[str, int] = {}
  for name in first.parts:
    tokens[name] = sum(counts[name] * phase.seq_len for counts, phase in zip(given, phases, strict=True))
  total = sum(tokens.values())
  stats: list[SourceStats] = []
  for name, part in first.parts.items():
    epochs = None
    if not part.is_endless:
      epochs = sum(counts[name] / len(train[phase.seq_len].parts[name])
                   for counts, phase in zip(given, phases, strict=True))
    stats.append(SourceStats(
      source=name,
      num_rows=sum(counts[name] for counts in given),
      share=tokens[name] / total,
      epochs=epochs,
      num_bytes=part.store.num_bytes,
      num_tokens=part.store.num_tokens,
    ))
  return stats


def _given_in(dataset: Dataset, samples: range) -> dict[str, int]:
  """How many of these samples are from each source."""
  before = dataset.given(samples.start)
  after = dataset.given(samples.stop)
  return {name: after[name] - before[name] for name in after}
