"""Needles in a haystack: facts planted in other text and asked for at its end, made as they are read.

A fact is a line of its own, `> KEY VALUE`; a question is the same line again, and the value is the answer. Keys and
values are common words that the tokenizer has an id for: a guess is hardly ever right, and even a small model can
learn to look an answer up, by what Olsson et al. 2022 call induction. It learns that in short texts first, and much
sooner than in long ones.
"""
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llm_jax.batch import LanguageModelBatch
from llm_jax.config.errors import require
from llm_jax.data.packing.pieces import assemble
from llm_jax.data.packing.rows import Encoded, Encoder, Fields, Rows, RowSettings
from llm_jax.data.token_store import TokenStore
from llm_jax.data.tokenizers.base import Tokenizer, opened

VALUES = 1  # words of an answer
KEYS = 16  # words that facts are looked up by
WORDS = 128  # words that keys and values are drawn from
LEAST_WORDS = 64  # that a tokenizer must have
ROWS = 1 << 20  # of an epoch: far more than are read


class Facts:
  """The lines of facts in a tokenizer's ids."""

  def __init__(self, tokenizer: Tokenizer):
    words = _words(tokenizer)
    require(len(words) >= LEAST_WORDS, 'tokenizer', f'{len(words)} words',
            f'needles are made of ids that stand for a word, and take {LEAST_WORDS}: use BPE(vocab_size=1_024) or more')
    self.eot = tokenizer.eot
    self._begin = np.array(opened(tokenizer, ())[-1:])
    self._words = np.array(words[:WORDS])
    self._opening = np.array(tokenizer.encode('\n>'))
    self._end = np.array(tokenizer.encode('\n'))
    self.question_length = len(self._opening) + 1  # ids of a line before its answer
    self.length = self.question_length + VALUES + len(self._end)

  def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
    """[count, 1 + VALUES] words, no key twice."""
    keys = rng.choice(self._words[:KEYS], count, replace=False)
    values = rng.choice(self._words, (count, VALUES))
    return np.concatenate([keys[:, None], values], axis=1)

  def line(self, fact: np.ndarray) -> np.ndarray:
    """The ids of a fact, and of its question and answer."""
    return np.concatenate([self._opening, fact, self._end])

  def plant(self, haystack: np.ndarray, facts: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """What a document begins with, then the haystack with fact i before its token places[i]."""
    pieces = [self._begin]
    start = 0
    for i in np.argsort(places, kind='stable'):
      pieces += [haystack[start:places[i]], self.line(facts[i])]
      start = places[i]
    return np.concatenate([*pieces, haystack[start:]])


@functools.lru_cache(maxsize=1)  # rows of every sequence length and every evaluation want the same
def _words(tokenizer: Tokenizer) -> list[int]:
  """The ids that stand for a space and a word."""
  return [i for i in range(tokenizer.vocab_size) if re.fullmatch(' [a-z]{3,}', tokenizer.decode([i]))]


class NeedleRows(Rows):
  """Rows of which only the answers are targets: row i is a function of the seed and i, one document as long as
  `seq_len`.

  spacing: a row has from one fact to one every `spacing` tokens (at most KEYS), all asked for at its end in another
    order.
  """
  is_endless = True
  num_targets = 0  # of rows without end nobody knows

  def __init__(self, store: TokenStore, settings: RowSettings, spacing: int):
    self.store = store
    self.seq_len = settings.seq_len
    self._seed = 0 if settings.seed is None else settings.seed
    self._facts = Facts(settings.tokenizer)
    shortest = 2 * self._facts.length  # a fact and its question
    self._most = max(1, min(self.seq_len // max(spacing, shortest), KEYS))  # facts of a row
    require(
      self.seq_len > shortest, 'seq_len', self.seq_len, f'a fact and its question take {shortest} tokens: raise it'
    )
    require(store.num_tokens > self.seq_len, 'seq_len', self.seq_len,
            f'the haystack has {store.num_tokens} tokens: shorten it')

  def __len__(self) -> int:
    return ROWS

  def __getitem__(self, row: int) -> Fields:
    ids, counts = self._document(row)
    return assemble([(ids, counts, self.seq_len)], self.seq_len, self._facts.eot)

  @property
  def padding(self) -> Fields:
    return assemble((), self.seq_len, 0)

  @staticmethod
  def to_batch(fields: Fields) -> LanguageModelBatch:
    return LanguageModelBatch(**fields)

  def documents(self, row: int) -> Iterator[np.ndarray]:
    return iter([self._document(row)[0]])

  def _document(self, row: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids [seq_len + 1], counts: whether an id is part of an answer)."""
    # The order of the draws decides what every row holds.
    rng = np.random.default_rng((self._seed, row))
    facts = self._facts.draw(int(rng.integers(1, self._most, endpoint=True)), rng)
    length = self.seq_len - 2 * len(facts) * self._facts.length
    start = rng.integers(self.store.num_tokens - length)
    haystack = np.asarray(self.store.tokens[start:start + length], np.int64)
    places = rng.integers(0, length, len(facts), endpoint=True)
    planted = self._facts.plant(haystack, facts, places.tolist())
    questions = np.concatenate([self._facts.line(fact) for fact in rng.permutation(facts)])
    place_in_line = np.arange(len(questions)) % self._facts.length
    first = self._facts.question_length
    is_answer = (first <= place_in_line) & (place_in_line < first + VALUES)
    counts = np.concatenate([np.zeros(len(planted), bool), is_answer])
    return np.concatenate([planted, questions]), counts


class NeedleEncoder(Encoder[Any]):
  """The haystack, stored as its own source stores it, and rows made of it.

  haystack: the encoder of its source.   spacing: see NeedleRows.
  """
  has_text = False  # its text is the haystack's, which may be a source of its own

  def __init__(self, haystack: Encoder, spacing: int):
    self.haystack = haystack
    self.spacing = spacing
    self.is_divisible = haystack.is_divisible

  @property
  def versions(self) -> dict[str, int]:
    return self.haystack.versions

  def length(self, document: Any) -> int:
    return self.haystack.length(document)

  def encode(self, documents: Sequence[Any], tokenizer: Tokenizer) -> Iterator[Encoded]:
    return self.haystack.encode(documents, tokenizer)

  def text(self, document: Any) -> str:
    return self.haystack.text(document)

  def learnt_bytes(self, document: Any, tokenizer: Tokenizer) -> Iterator[bytes]:
    return self.haystack.learnt_bytes(document, tokenizer)

  def make_rows(self, store: TokenStore, settings: RowSettings) -> NeedleRows:
    return NeedleRows(store, settings, self.spacing)
