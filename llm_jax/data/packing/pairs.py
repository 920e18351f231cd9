"""Pairs of answers to rows: one pair a row, each side a document of its own, padded to the sequence length."""
import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.batch import LanguageModelBatch, PreferenceBatch
from llm_jax.config.errors import require
from llm_jax.data.packing.chats import Dialogue, encode_dialogue
from llm_jax.data.packing.pieces import assemble
from llm_jax.data.packing.rows import Encoded, Encoder, Fields, Rows, RowSettings
from llm_jax.data.token_store import TokenStore
from llm_jax.data.tokenizers import chat_templates
from llm_jax.data.tokenizers.base import Tokenizer

SIDES = ('chosen', 'rejected')
NUMBER_IDS = 4  # ids that a number of a pair is stored in
NUMBER_FORMAT = 1  # raise it when numbers are stored in another way


class Pair(NamedTuple):
  """Two dialogues with the same prompt.

  margin: how much better the chosen one is.
  soft_label: how probable it is that it is the better one.
  """
  chosen: Dialogue
  rejected: Dialogue
  margin: float = 0.0
  soft_label: float = 1.0


class PairRows(Rows):
  """Rows of a store of preferences: `rows[i]` is {'chosen', 'rejected'}, each the fields of LanguageModelBatch, and the
  pair's `numbers`, such as 'margins'.

  What does not fit into `seq_len` inputs and the target after them is cut off at the end, and a pair whose prompt
  leaves no room for a token of the answer is left out: what trl's DPOTrainer does with max_length = seq_len + 1. So is
  one whose answers are equal as far as they fit: it says nothing of either.
  num_cut: pairs of which a side is cut. num_left_out: pairs left out for their prompt; num_equal: those left out for
  their answers.
  """

  def __init__(self, store: TokenStore, settings: RowSettings, numbers: tuple[str, ...] = ()):
    self.store = store
    self.seq_len = settings.seq_len
    self.numbers = numbers
    self._eot = settings.tokenizer.eot
    first = store.offsets[:-1].reshape(-1, 2)  # [pairs, side]
    last = np.array(store.offsets[1:].reshape(-1, 2))
    last[:, 0] -= NUMBER_IDS * len(numbers)  # they stand behind the chosen answer
    fits = self._prompts_fit(first, last)
    num_fitting = int(fits.sum())
    require(
      num_fitting > 0, 'seq_len', self.seq_len, f'no answer begins within it in any of {len(fits)} pairs: raise it'
    )

    ends = np.minimum(last, first + self.seq_len + 1)
    is_equal = self._equal_within(first, ends, fits & (ends < last).any(axis=1))  # of those that are whole, none is
    fits &= ~is_equal
    require(bool(fits.any()), 'seq_len', self.seq_len, 'within it all pairs of answers are equal: raise it')

    self.num_left_out = len(fits) - num_fitting
    self.num_equal = int(is_equal.sum())
    self._numbers_at = last[fits, 0]
    self._first = first[fits]
    self._last = ends[fits]
    self.num_cut = int((self._last < last[fits]).any(axis=1).sum())
    documents = zip(self._first.flat, self._last.flat, strict=True)
    self.num_targets = sum(int(store.target_counts[a:b].sum()) for a, b in documents)

  def _prompts_fit(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """bool [pairs]: whether both answers begin within a row."""
    documents = zip(first.flat, last.flat, strict=True)
    answers = [np.argmax(self.store.target_counts[a:b]) for a, b in documents]
    begins_within = np.reshape(answers, first.shape) <= self.seq_len
    return np.asarray(begins_within.all(axis=1))

  def _equal_within(self, first: np.ndarray, ends: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """bool [pairs]: those of the candidates whose sides are equal up to their ends."""
    is_equal = np.zeros(len(first), bool)
    for pair in np.flatnonzero(candidates):
      chosen, rejected = (self.store.tokens[a:b] for a, b in zip(first[pair], ends[pair], strict=True))
      is_equal[pair] = np.array_equal(chosen, rejected)
    return is_equal

  def __len__(self) -> int:
    return len(self._first)

  def __getitem__(self, row: int) -> Fields:
    sides = {name: self._side(part) for name, part in zip(SIDES, self._parts(row), strict=True)}
    return {**sides, **self._numbers(row)}

  def _numbers(self, row: int) -> Fields:
    begin = int(self._numbers_at[row])
    starts = range(begin, begin + NUMBER_IDS * len(self.numbers), NUMBER_IDS)
    return {name: ids_to_number(self.store.tokens[start:start + NUMBER_IDS])
            for name, start in zip(self.numbers, starts, strict=True)}

  def _side(self, part: slice) -> Fields:
    num_inputs = part.stop - part.start - 1
    return assemble([(self.store.tokens[part], self.store.target_counts[part], num_inputs)], self.seq_len, self._eot)

  @property
  def padding(self) -> Fields:
    sides = {name: assemble((), self.seq_len, 0) for name in SIDES}
    return {**sides, **{name: np.float32(0) for name in self.numbers}}

  @staticmethod
  def to_batch(fields: Fields) -> PreferenceBatch:
    sides = {name: LanguageModelBatch(**fields[name]) for name in SIDES}
    return PreferenceBatch(**{**fields, **sides})

  def documents(self, row: int) -> Iterator[np.ndarray]:
    """The ids of both sides."""
    return (self.store.tokens[part] for part in self._parts(row))

  def warnings(self) -> Iterator[str]:
    count = self.store.num_documents // 2
    if self.num_left_out:
      yield f'{self.num_left_out} of {count} pairs left out, their prompt fills seq_len={self.seq_len}'
    if self.num_equal:
      yield f'{self.num_equal} of {count} pairs left out, their answers are equal within seq_len={self.seq_len}'
    if self.num_cut:
      yield f'{self.num_cut} of {len(self)} pairs are longer than seq_len={self.seq_len} and are cut'

  def _parts(self, row: int) -> Iterator[slice]:
    return (slice(int(a), int(b)) for a, b in zip(self._first[row], self._last[row], strict=True))


@dataclasses.dataclass(frozen=True)
class PairEncoder(Encoder[Pair]):
  """A pair is stored as two documents, the chosen one first, as the template writes them; behind the chosen one stand
  the bytes of the margin and of the soft label, where pairs have one.

  mask_formatting: special tokens are no targets.
  """
  template: str | None
  mask_formatting: bool
  has_margins: bool = False
  has_soft_labels: bool = False
  has_counts = True

  @property
  def numbers(self) -> tuple[str, ...]:
    """What is stored of a pair beside its answers, by the names of `PreferenceBatch`, in this order."""
    margins = ('margins',) if self.has_margins else ()
    return (*margins, 'soft_labels') if self.has_soft_labels else margins

  @property
  def versions(self) -> dict[str, int]:
    chat = {'chat': chat_templates.FORMAT}
    margins = {'margin': NUMBER_FORMAT} if self.has_margins else {}
    soft_labels = {'soft_label': NUMBER_FORMAT} if self.has_soft_labels else {}
    return {**chat, **margins, **soft_labels}

  def check(self, tokenizer: Tokenizer) -> None:
    chat_templates.check_template(self.template, tokenizer)
    require(not self.numbers or tokenizer.vocab_size >= 256, ', '.join(self.numbers), f'{tokenizer.vocab_size} tokens',
            'they are stored as 256 different ids: use a tokenizer with as many')

  def length(self, document: Pair) -> int:
    return document.chosen.length + document.rejected.length

  def encode(self, documents: Sequence[Pair], tokenizer: Tokenizer) -> Iterator[Encoded]:
    for pair in documents:
      chosen, rejected = (encode_dialogue(dialogue, self.template, tokenizer, self.mask_formatting)
                          for dialogue in (pair.chosen, pair.rejected))
      stored = {'margins': pair.margin, 'soft_labels': pair.soft_label}
      yield with_numbers(chosen, [stored[name] for name in self.numbers])
      yield rejected

  def text(self, document: Pair) -> str:
    """The prompt once."""
    return '\n'.join([document.chosen.text, *document.rejected.answers])

  def learnt_bytes(self, document: Pair, tokenizer: Tokenizer) -> Iterator[bytes]:
    yield document.chosen.learnt
    yield document.rejected.learnt

  def make_rows(self, store: TokenStore, settings: RowSettings) -> PairRows:
    return PairRows(store, settings, self.numbers)


def with_numbers(encoded: Encoded, numbers: Sequence[float]) -> Encoded:
  """A document with the bytes of numbers behind it, none of them a target."""
  assert encoded.counts is not None
  counts = np.concatenate([encoded.counts, np.zeros(NUMBER_IDS * len(numbers), encoded.counts.dtype)])
  return Encoded((*encoded.ids, *map(number_to_ids, numbers)), encoded.num_bytes, counts)


def number_to_ids(number: float) -> np.ndarray:
  """The four bytes of a float32, little-endian."""
  return np.frombuffer(np.array(number, '<f4').tobytes(), np.uint8).astype(np.int32)


def ids_to_number(ids: np.ndarray) -> np.float32:
  return np.frombuffer(np.asarray(ids, np.uint8).tobytes(), '<f4')[0]
