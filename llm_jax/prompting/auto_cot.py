"""Auto-CoT: examples that the model writes itself, for questions that differ from each other (Zhang et al. 2022)."""
import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.config.errors import require
from llm_jax.prompting.answers import LAST_NUMBER, UNPARSED, Extract
from llm_jax.prompting.chain_of_thought import THEREFORE, Reasoned, zero_shot_cot
from llm_jax.prompting.few_shot import PLAIN, Layout
from llm_jax.prompting.program import Exemplar, Program

LONGEST_QUESTION = 60  # tokens, here words and signs (section 4.2)
MOST_STEPS = 5  # of reasoning, one a line
WIDTH = 512  # of the vectors that `word_vectors` makes
ROUNDS = 300  # of k-means, at most


class Clusters(NamedTuple):
  """labels: int [items].   centres: float64 [clusters, width]."""
  labels: np.ndarray
  centres: np.ndarray


def word_vectors(questions: Sequence[str]) -> np.ndarray:
  """Counts of words, weighted by how few questions have them, and of length 1: float64 [questions, WIDTH].

  They need no model. Any other embedding serves `auto_cot` too.
  """
  counts = np.zeros((len(questions), WIDTH))
  for row, question in zip(counts, questions, strict=True):
    for word in re.findall(r'\w+', question.lower()):
      row[zlib.crc32(word.encode()) % WIDTH] += 1
  weighted = counts * np.log((1 + len(questions)) / (1 + (counts > 0).sum(0)))
  lengths = np.linalg.norm(weighted, axis=1, keepdims=True)
  return weighted / np.maximum(lengths, 1e-12)


def k_means(vectors: np.ndarray, count: int, seed: int = 0) -> Clusters:
  """Lloyd's algorithm, which begins with centres drawn far from each other (Arthur & Vassilvitskii 2007)."""
  require(1 <= count <= len(vectors), 'clusters', count, f'use 1 to {len(vectors)}, the number of questions')
  rng = np.random.default_rng(seed)
  centres = vectors[rng.integers(len(vectors))][None]
  while len(centres) < count:
    nearest = _distances(vectors, centres).min(1)
    total = nearest.sum()
    shares = nearest / total if total > 0 else None  # all are equal to a centre: any will do
    centres = np.vstack([centres, vectors[rng.choice(len(vectors), p=shares)]])
  return lloyd(vectors, centres)


def lloyd(vectors: np.ndarray, centres: np.ndarray) -> Clusters:
  """Moves each centre to the mean of what is nearest to it, until nothing changes. An empty cluster stays."""
  labels = _distances(vectors, centres).argmin(1)
  for _ in range(ROUNDS):
    means = [vectors[labels == i].mean(0) if (labels == i).any() else centre for i, centre in enumerate(centres)]
    centres = np.stack(means)
    moved = _distances(vectors, centres).argmin(1)
    if (moved == labels).all():
      break
    labels = moved
  return Clusters(labels, centres)


def _distances(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
  """Squared, [items, clusters]."""
  return ((vectors[:, None] - centres[None]) ** 2).sum(-1)


def nearest_first(vectors: np.ndarray, clusters: Clusters) -> list[list[int]]:
  """Of each cluster its items, the nearest to the centre first (section 4.1, figure 4)."""
  distances = _distances(vectors, clusters.centres)
  found: list[list[int]] = []
  for cluster in range(len(clusters.centres)):
    members = np.flatnonzero(clusters.labels == cluster)
    order = np.argsort(distances[members, cluster], kind='stable')
    found.append(members[order].tolist())
  return found


def auto_cot(questions: Sequence[str], vectors: np.ndarray, clusters: int, seed: int = 0,
             extract: Extract = LAST_NUMBER, layout: Layout = PLAIN) -> list[Program[Exemplar | None]]:
  """For each cluster of questions a program that makes an example of it: `run_together` makes all at once."""
  groups = nearest_first(vectors, k_means(vectors, clusters, seed))
  return [example_of([questions[place] for place in group], extract, layout) for group in groups]


def example_of(questions: Sequence[str], extract: Extract = LAST_NUMBER, layout: Layout = PLAIN
               ) -> Program[Exemplar | None]:
  """The first question that is short and whose reasoning is simple, with it (section 4.2); None if there is none."""
  for question in questions:
    if len(re.findall(r'\w+|[^\w\s]', question)) > LONGEST_QUESTION:
      continue
    reasoned = yield from zero_shot_cot(question, extract, layout)
    if is_simple(reasoned):
      return _exemplar(question, reasoned)
  return None


def is_simple(reasoned: Reasoned) -> bool:
  """Whether an answer was found behind a few steps of reasoning, which mention it."""
  reason = reasoned.text.partition(f'\n{THEREFORE}')[0]
  steps = [line for line in reason.splitlines() if line.strip()]
  return reasoned.answer != UNPARSED and len(steps) <= MOST_STEPS


def _exemplar(question: str, reasoned: Reasoned) -> Exemplar:
  reason = reasoned.text.partition(f'\n{THEREFORE}')[0].strip()
  return Exemplar(question, f'The answer is {reasoned.answer}.', reason)
