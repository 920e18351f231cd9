"""What finds passages for questions, the fusion of several rankings, and how often the right passage is found."""
import collections
import dataclasses
from collections.abc import Collection, Sequence
from typing import Protocol

POOL = 100  # passages of each ranking that are fused


class Retriever(Protocol):
  """Finds the numbers of passages."""

  def search_all(self, questions: Sequence[str], count: int) -> list[list[int]]:
    """For each question up to `count` passages, the best first."""
    ...


@dataclasses.dataclass(frozen=True)
class Fused:
  """The fused rankings of several retrievers."""
  retrievers: tuple[Retriever, ...]

  def search_all(self, questions: Sequence[str], count: int) -> list[list[int]]:
    rankings = [retriever.search_all(questions, max(POOL, count)) for retriever in self.retrievers]
    return [fuse(of_question, count) for of_question in zip(*rankings, strict=True)]


def fuse(rankings: Sequence[Sequence[int]], count: int, k: int = 60) -> list[int]:
  """Reciprocal rank fusion (Cormack et al. 2009): a passage gets 1 / (k + rank) from each ranking."""
  points: dict[int, float] = collections.defaultdict(float)
  for ranking in rankings:
    for rank, passage in enumerate(ranking, 1):
      points[passage] += 1 / (k + rank)
  return sorted(points, key=lambda passage: (-points[passage], passage))[:count]


def recall(found: Sequence[Sequence[int]], gold: Sequence[Collection[int]]) -> float:
  """The share of questions for which a right passage is among those that were found."""
  hits = [not set(right).isdisjoint(passages) for passages, right in zip(found, gold, strict=True)]
  return sum(hits) / len(hits)
