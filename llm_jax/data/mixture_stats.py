"""What a stage takes from each source of its mixture, as papers print it."""
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llm_jax.config.ramp import Phase, spans
from llm_jax.data.dataset import Dataset


class Share(NamedTuple):
  """A row of the table (Brown et al. 2020, GPT-3, table 2.2; Touvron et al. 2023, LLaMA, table 1).

  num_rows: rows given. share: of the tokens that the stage reads, padding included. epochs: how often the source is
  gone through; None where its rows have no end. num_bytes, num_tokens: its size, once; of needles that of
  their haystack.
  """
  source: str
  num_rows: int
  share: float
  epochs: float | None
  num_bytes: int
  num_tokens: int


def shares(train: Mapping[int, Dataset], phases: Sequence[Phase], num_samples: int) -> list[Share]:
  """The rows of the table after a stage's first samples, exact under schedules and ramps and known before the first;
  [] where there are none.

  train: the stage's training data by sequence length.
  """
  if not num_samples:
    return []
  datasets, found = [train[phase.seq_len] for phase in phases], []
  given = [(dataset.given(span.start), dataset.given(span.stop))
           for dataset, (_, span) in zip(datasets, spans(phases, num_samples), strict=True)]
  for name, part in datasets[0].parts.items():
    rows = [after[name] - before[name] for before, after in given]
    tokens = sum(count * phase.seq_len for count, phase in zip(rows, phases, strict=True))
    epochs = None if part.is_endless else sum(
      count / len(dataset.parts[name]) for count, dataset in zip(rows, datasets, strict=True))
    found.append(Share(name, sum(rows), tokens, epochs, part.store.num_bytes, part.store.num_tokens))
  every = sum(row.share for row in found)
  return [row._replace(share=row.share / every) for row in found]
