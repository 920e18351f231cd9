"""Rated answers to rows: one answer a row, and beside it the answer to another prompt in its place."""
import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.batch import LanguageModelBatch, RatedBatch
from llm_jax.config.errors import require
from llm_jax.data.packing.chats import Dialogue, encode_dialogue
from llm_jax.data.packing.pieces import assemble
from llm_jax.data.packing.rows import Encoded, Encoder, Fields, Rows, RowSettings
from llm_jax.data.token_store import TokenStore
from llm_jax.data.tokenizers import chat_templates
from llm_jax.data.tokenizers.base import Tokenizer


class Rated(NamedTuple):
  """An answer to a prompt, and whether it is desirable."""
  dialogue: Dialogue
  is_desirable: bool


class RatedRows(Rows):
  """Rows of a store of rated answers: `rows[i]` has the fields of RatedBatch.

  What does not fit into `seq_len` inputs and the target after them is cut off at the end, and an answer whose prompt
  leaves no room for a token of it is left out. The mismatched answer of a row is that of the row half of all rows
  further: so it is the same in every batch, on any number of devices, and answers to one prompt that stand together are
  not mismatched with each other. (TRL takes the next one in the batch.)
  num_cut: answers that are cut. num_left_out: those left out for their prompt.
  """

  def __init__(self, store: TokenStore, settings: RowSettings):
    self.store = store
    self.seq_len = settings.seq_len
    self._eot = settings.tokenizer.eot
    first = store.offsets[:-1]
    last = store.offsets[1:] - 1  # the rating stands behind the document
    starts = _answer_starts(store, first, last)
    fits = starts - first <= self.seq_len
    require(int(fits.sum()) >= 2, 'seq_len', self.seq_len,
            f'{int(fits.sum())} of {len(fits)} answers begin within it, and two are needed: raise it, or add answers')
    self.num_left_out = int((~fits).sum())
    self._first = first[fits]
    self._answers = starts[fits]
    self._last = last[fits]
    self.is_desirable = np.array(store.tokens[self._last], np.int32)
    self.num_cut = int((self._last - self._first > self.seq_len + 1).sum())
    ends = np.minimum(self._last, self._first + self.seq_len + 1)
    self.num_targets = sum(int(store.target_counts[a:b].sum()) for a, b in zip(self._first, ends, strict=True))

  def __len__(self) -> int:
    return len(self._first)

  def __getitem__(self, row: int) -> Fields:
    other = (row + len(self) // 2) % len(self)
    return {'answer': self._sequence(row, row), 'mismatched': self._sequence(row, other),
            'is_desirable': self.is_desirable[row]}

  @property
  def padding(self) -> Fields:
    nothing = assemble((), self.seq_len, 0)
    return {'answer': nothing, 'mismatched': nothing, 'is_desirable': np.int32(0)}

  @staticmethod
  def to_batch(fields: Fields) -> RatedBatch:
    sides = {name: LanguageModelBatch(**fields[name]) for name in ('answer', 'mismatched')}
    return RatedBatch(**{**fields, **sides})

  def documents(self, row: int) -> Iterator[np.ndarray]:
    """The ids of the prompt and its own answer."""
    yield self._ids(row, row)[0]

  def warnings(self) -> Iterator[str]:
    count = self.store.num_documents
    if self.num_left_out:
      yield f'{self.num_left_out} of {count} answers left out, their prompt fills seq_len={self.seq_len}'
    if self.num_cut:
      yield f'{self.num_cut} of {len(self)} answers are longer than seq_len={self.seq_len} and are cut'

  def _sequence(self, prompt: int, answer: int) -> Fields:
    ids, counts = self._ids(prompt, answer)
    return assemble([(ids, counts, len(ids) - 1)], self.seq_len, self._eot)

  def _ids(self, prompt: int, answer: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a row's prompt and of a row's answer, at most seq_len + 1, and which of them are targets."""
    prompt_part = slice(int(self._first[prompt]), int(self._answers[prompt]))
    answer_part = slice(int(self._answers[answer]), int(self._last[answer]))
    prompt_ids = self.store.tokens[prompt_part]
    ids = np.concatenate([prompt_ids, self.store.tokens[answer_part]])
    counts = np.concatenate([np.zeros(len(prompt_ids), np.uint8), self.store.target_counts[answer_part]])
    return ids[:self.seq_len + 1], counts[:self.seq_len + 1]


def _answer_starts(store: TokenStore, first: np.ndarray, last: np.ndarray) -> np.ndarray:
  """int64 [documents]: where each answer begins in the store."""
  starts = [int(a) + int(np.argmax(store.target_counts[a:b])) for a, b in zip(first, last, strict=True)]
  return np.array(starts, np.int64)


@dataclasses.dataclass(frozen=True)
class RatedEncoder(Encoder[Rated]):
  """A rated answer is stored as its template writes it, and behind it 1 or 0: whether it is desirable."""
  template: str | None
  has_counts = True

  @property
  def versions(self) -> dict[str, int]:
    return {'chat': chat_templates.FORMAT}

  def check(self, tokenizer: Tokenizer) -> None:
    chat_templates.check_template(self.template, tokenizer)

  def length(self, document: Rated) -> int:
    return document.dialogue.length

  def encode(self, documents: Sequence[Rated], tokenizer: Tokenizer) -> Iterator[Encoded]:
    for dialogue, is_desirable in documents:
      encoded = encode_dialogue(dialogue, self.template, tokenizer)
      if encoded.counts is None:
        raise ValueError('a dialogue knows which of its tokens are targets')
      ids = (*encoded.ids, np.array([is_desirable], np.int32))
      yield Encoded(ids, encoded.num_bytes, np.append(encoded.counts, 0))

  def text(self, document: Rated) -> str:
    return document.dialogue.text

  def learnt_bytes(self, document: Rated, tokenizer: Tokenizer) -> Iterator[bytes]:
    yield document.dialogue.learnt

  def make_rows(self, store: TokenStore, settings: RowSettings) -> RatedRows:
    return RatedRows(store, settings)
