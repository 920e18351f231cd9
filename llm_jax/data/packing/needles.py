"""Needles in a haystack: facts planted in other text and asked for at its end, made as they are read.

A fact is a line of its own, `> KEY VALUE`; a question is the same line again, and the value is the answer. Keys and
values are common words that the tokenizer has an id for: a guess is hardly ever right, and even a small model can
learn to look an answer up, by what Olsson et al. 2022 call induction. It learns that in short texts first, and much
sooner than in long ones.
"""
import functools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from llm_jax.config.errors import require
from llm_jax.data.packing.text import assemble
from llm_jax.data.token_store import TokenStore
from llm_jax.data.tokenizers.base import Tokenizer

VALUES = 1        # words of an answer
KEYS, WORDS, LEAST_WORDS = 16, 128, 64  # how many words are keys and values, and how many a tokenizer must have
ROWS = 1 << 20    # of an epoch: far more than are read


class Facts:
  """The lines of facts in a tokenizer's ids."""

  def __init__(self, tokenizer: Tokenizer):
    words = _words(tokenizer)
    require(len(words) >= LEAST_WORDS, 'tokenizer', f'{len(words)} words',
            f'needles are made of ids that stand for a word, and take {LEAST_WORDS}: use BPE(vocab_size=1_024) or more')
    self.eot, self._words = tokenizer.eot, np.array(words[:WORDS])
    self._opening, self._end = (np.array(tokenizer.encode(part)) for part in ('\n>', '\n'))
    self.question_length = len(self._opening) + 1  # ids of a line before its answer
    self.length = self.question_length + VALUES + len(self._end)

  def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
    """[count, 1 + VALUES] words, no key twice."""
    keys = rng.choice(self._words[:KEYS], count, replace=False)
    return np.concatenate([keys[:, None], rng.choice(self._words, (count, VALUES))], axis=1)

  def line(self, fact: np.ndarray) -> np.ndarray:
    """The ids of a fact, and of its question and answer."""
    return np.concatenate([self._opening, fact, self._end])

  def plant(self, haystack: np.ndarray, facts: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """The end of text, then the haystack with fact i before its token places[i]."""
    pieces, at = [np.array([self.eot])], 0
    for i in np.argsort(places, kind='stable'):
      pieces += [haystack[at:places[i]], self.line(facts[i])]
      at = places[i]
    return np.concatenate([*pieces, haystack[at:]])


@functools.lru_cache(maxsize=1)  # rows of every sequence length and every evaluation want the same
def _words(tokenizer: Tokenizer) -> list[int]:
  """The ids that stand for a space and a word."""
  return [i for i in range(tokenizer.vocab_size) if re.fullmatch(' [a-z]{3,}', tokenizer.decode([i]))]


class NeedleRows:
  """Rows of which only the answers are targets: row i is a function of `seed` and i, one document as long as `seq_len`.

  spacing: a row has from one fact to one every `spacing` tokens (at most KEYS), all asked for at its end in another
    order.
  """

  def __init__(self, store: TokenStore, tokenizer: Tokenizer, seq_len: int, seed: int, spacing: int):
    self.store, self._needles, self._context, self._seed = store, Facts(tokenizer), seq_len, seed
    self._most = max(1, min(seq_len // max(spacing, 2 * self._needles.length), KEYS))
    room = seq_len - 2 * self._needles.length
    require(room > 0, 'seq_len', seq_len, f'a fact and its question take {2 * self._needles.length} tokens: raise it')
    require(store.num_tokens > seq_len, 'seq_len', seq_len, f'the haystack has {store.num_tokens} tokens: shorten it')
    self.num_targets, self.num_cut = 0, 0

  def __len__(self) -> int:
    return ROWS

  def __getitem__(self, row: int) -> dict[str, np.ndarray]:
    ids, counts = self._document(row)
    return assemble([(ids, counts, self._context)], self._context, self._needles.eot)

  def documents(self, row: int) -> Iterator[np.ndarray]:
    return iter([self._document(row)[0]])

  def _document(self, row: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids [seq_len + 1], counts: whether an id is part of an answer)."""
    rng, needles = np.random.default_rng((self._seed, row)), self._needles
    facts = needles.draw(rng.integers(1, self._most, endpoint=True), rng)
    length = self._context - 2 * len(facts) * needles.length
    start = rng.integers(self.store.num_tokens - length)
    haystack = np.asarray(self.store.tokens[start:start + length], np.int64)
    planted = needles.plant(haystack, facts, rng.integers(0, length, len(facts), endpoint=True))
    questions = np.concatenate([needles.line(fact) for fact in rng.permutation(facts)])
    place = np.arange(len(questions)) % needles.length - needles.question_length
    asked = (0 <= place) & (place < VALUES)
    return np.concatenate([planted, questions]), np.concatenate([np.zeros(len(planted), bool), asked])
