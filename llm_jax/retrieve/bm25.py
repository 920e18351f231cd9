"""BM25 over passages (Robertson and Zaragoza 2009, section 3)."""
import collections
import re
from collections.abc import Sequence

import numpy as np

from llm_jax.config.errors import require

WORD = re.compile(r'\w+')
LEAST_IDF = 0.25  # part of the mean idf that a word in more than half of the passages counts, as in rank_bm25


def words(text: str) -> list[str]:
  return WORD.findall(text.lower())


class BM25:
  """Scores passages by the words that they share with a question.

  Args:
    texts: of the passages.
    k1: how soon the repetition of a word stops to count.
    b: how much long passages are scored down, 0 to 1.

  Raises:
    ConfigError: there is no passage with a word in it.
  """

  def __init__(self, texts: Sequence[str], k1: float = 1.5, b: float = 0.75):
    counts = [collections.Counter(words(text)) for text in texts]
    lengths = np.array([count.total() for count in counts], np.float64)
    require(lengths.sum() > 0, 'passages', len(texts), 'there is no word in them')
    self._size = len(texts)
    self._k1 = k1
    self._damping = k1 * (1 - b + b * lengths / lengths.mean())
    self._places: dict[str, list[int]] = collections.defaultdict(list)
    self._repeats: dict[str, list[int]] = collections.defaultdict(list)
    for place, count in enumerate(counts):
      for word, repeats in count.items():
        self._places[word].append(place)
        self._repeats[word].append(repeats)
    self._idf = self._inverse_frequencies()

  def _inverse_frequencies(self) -> dict[str, float]:
    idf: dict[str, float] = {}
    for word, places in self._places.items():
      idf[word] = float(np.log(self._size - len(places) + 0.5) - np.log(len(places) + 0.5))
    least = LEAST_IDF * sum(idf.values()) / len(idf)
    return {word: least if value < 0 else value for word, value in idf.items()}

  def scores(self, question: str) -> np.ndarray:
    """float64, one for each passage."""
    total = np.zeros(self._size)
    for word in words(question):
      if word in self._idf:
        places = np.array(self._places[word])
        repeats = np.array(self._repeats[word])
        total[places] += self._idf[word] * repeats * (self._k1 + 1) / (repeats + self._damping[places])
    return total

  def search(self, question: str, count: int) -> list[int]:
    """The numbers of the best passages, the best first; of equal ones the earlier."""
    return np.argsort(-self.scores(question), kind='stable')[:count].tolist()

  def search_all(self, questions: Sequence[str], count: int) -> list[list[int]]:
    return [self.search(question, count) for question in questions]
