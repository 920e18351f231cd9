"""Two evaluations of the same questions, item by item: another backend, or another checkpoint."""
import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from llm_jax.harness.run import metric_values
from llm_jax.harness.statistics import Difference, difference

RELATIVE, ABSOLUTE = 1e-6, 1e-5  # by how much log-probabilities of one model may differ between backends
TIE = 1e-4  # choices that are nearer to each other than this may change places by rounding


@dataclasses.dataclass(frozen=True)
class ItemDifference:
  """A question to which two backends give other answers.

  first, second: log-probabilities of its choices, or texts.
  margin: between the two best choices of the first; None where there are no choices.
  apart: the largest difference of a log-probability; None between texts.
  """
  task: str
  doc_id: int
  first: tuple[Any, ...]
  second: tuple[Any, ...]
  margin: float | None
  apart: float | None

  @property
  def is_tie(self) -> bool:
    """Whether rounding alone may have decided."""
    return self.margin is not None and self.margin <= TIE

  @property
  def in_words(self) -> str:
    parts = [f'{self.task}, question {self.doc_id}: {shortened(self.first)} and {shortened(self.second)}']
    if self.margin is not None:
      parts.append(f'margin {self.margin:.2g}')
    if self.apart is not None:
      parts.append(f'apart by {self.apart:.2g}')
    return ', '.join(parts)


@dataclasses.dataclass(frozen=True)
class BackendComparison:
  """What two backends found of one model.

  items: how many questions were compared.   apart: the largest difference of a log-probability.
  answers: questions whose decision or text differs.
  scores: those whose log-probabilities differ by more than rounding.
  """
  items: int
  apart: float
  answers: tuple[ItemDifference, ...]
  scores: tuple[ItemDifference, ...]

  @property
  def agrees(self) -> bool:
    """Whether nothing differs but what rounding explains."""
    return not self.scores and all(item.is_tie for item in self.answers)


def shortened(values: Sequence[Any]) -> str:
  shown = [f'{value:.4f}' if isinstance(value, float) else repr(value)[:60] for value in values]
  return f'[{", ".join(shown)}]'


def compare_backends(first: Mapping[str, Any], second: Mapping[str, Any]) -> BackendComparison:
  """first, second: results of the harness, with samples, of the same tasks."""
  items, apart = 0, 0.0
  answers: list[ItemDifference] = []
  scores: list[ItemDifference] = []
  for task, samples in first['samples'].items():
    others = {_place(sample): sample for sample in second['samples'][task]}
    for sample in samples:
      one, other = _answers(sample), _answers(others[_place(sample)])
      found = _differing(task, sample['doc_id'], one, other)
      items += 1
      apart = max(apart, found.apart or 0.0)
      if _decision(one) != _decision(other):
        answers.append(found)
      if _beyond_rounding(one, other):
        scores.append(found)
  return BackendComparison(items, apart, tuple(answers), tuple(scores))


def _place(sample: Mapping[str, Any]) -> tuple[Hashable, ...]:
  return sample['doc_id'], sample['filter']


def _answers(sample: Mapping[str, Any]) -> tuple[Any, ...]:
  """Log-probabilities (with whether the text is greedy), or texts, as the model gave them."""
  return tuple(answer for answers in sample['resps'] for answer in answers)


def _log_probs(answers: Sequence[Any]) -> list[float]:
  """Of answers that are such; of (log-probability, is greedy) the first."""
  values = [answer[0] if isinstance(answer, tuple | list) else answer for answer in answers]
  return [float(value) for value in values if isinstance(value, int | float)]


def _decision(answers: Sequence[Any]) -> Any:
  """What is decided: the likeliest choice, whether a lone text is greedy, a text."""
  log_probs = _log_probs(answers)
  if not log_probs:
    return answers
  if len(log_probs) > 1:
    return log_probs.index(max(log_probs))
  return answers[0][1] if isinstance(answers[0], tuple | list) else None


def _differing(task: str, doc_id: int, one: tuple[Any, ...], other: tuple[Any, ...]) -> ItemDifference:
  log_probs, others = _log_probs(one), _log_probs(other)
  if not log_probs:
    return ItemDifference(task, doc_id, one, other, None, None)
  best = sorted(log_probs, reverse=True)
  margin = best[0] - best[1] if len(best) > 1 else None
  apart = max(abs(a - b) for a, b in zip(log_probs, others, strict=True))
  return ItemDifference(task, doc_id, tuple(log_probs), tuple(others), margin, apart)


def _beyond_rounding(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
  pairs = zip(_log_probs(one), _log_probs(other), strict=True)
  return any(abs(a - b) > RELATIVE * abs(a) + ABSOLUTE for a, b in pairs)


# ---------------------------------------------------------------------------------------------- checkpoints
@dataclasses.dataclass(frozen=True)
class MetricDifference:
  """A metric of two models on the questions that both were asked."""
  task: str
  metric: str
  filter: str
  first: float
  second: float
  difference: Difference


def compare_models(first: Mapping[str, Sequence[Mapping[str, Any]]], second: Mapping[str, Sequence[Mapping[str, Any]]],
                   cluster: str | None = None) -> list[MetricDifference]:
  """Every metric that both have a number of for each question.

  first, second: samples by task. Questions that only one was asked are left out; the same number is another question
    where its content is another.
  """
  found: list[MetricDifference] = []
  for task in first.keys() & second.keys():
    both = {_question(sample) for sample in first[task]} & {_question(sample) for sample in second[task]}
    one, other = ([sample for sample in samples[task] if _question(sample) in both] for samples in (first, second))
    names = {(name, sample['filter']) for sample in one for name in sample.get('metrics', ())}
    for metric, filter_name in sorted(names):
      values, clusters = metric_values(one, metric, filter_name, cluster)
      others, _ = metric_values(other, metric, filter_name)
      if values and len(values) == len(others):
        found.append(MetricDifference(task, metric, filter_name, sum(values) / len(values), sum(others) / len(others),
                                      difference(values, others, clusters)))
  return sorted(found, key=lambda item: (item.task, item.metric, item.filter))


def _question(sample: Mapping[str, Any]) -> tuple[Hashable, ...]:
  return sample['doc_id'], sample['doc_hash']
