"""Ranked answers to rows: all answers to one prompt in one row, each a document of its own, padded to the sequence
length."""
import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.batch import LanguageModelBatch, RankedBatch
from llm_jax.config.errors import require
from llm_jax.data.packing.chats import Dialogue, encode_dialogue
from llm_jax.data.packing.pieces import assemble
from llm_jax.data.packing.rows import Encoded, Encoder, Fields, Rows, RowSettings
from llm_jax.data.token_store import TokenStore
from llm_jax.data.tokenizers import chat_templates
from llm_jax.data.tokenizers.base import Tokenizer

ABSENT = 0  # the rank of an answer that a row does not have
BEHIND = 2  # ids behind an answer: its place among those to the prompt, and its rank


class Ranked(NamedTuple):
  """Dialogues with the same prompt.   ranks: of each, 1 the best; equal ones are not compared."""
  answers: Sequence[Dialogue]
  ranks: Sequence[int]


class RankedRows(Rows):
  """Rows of a store of ranked answers: `rows[i]` has the fields of RankedBatch, with room for `most` answers.

  What does not fit into `seq_len` inputs and the target after them is cut off at the end. An answer that as far as it
  fits is equal to a better one is left out of its row; a row is left out whose prompt leaves no room for a token of an
  answer, or that has no two answers of different rank.
  num_cut: rows of which an answer is cut. num_left_out: rows left out for their prompt; num_equal: those left out for
  their answers.
  """

  def __init__(self, store: TokenStore, settings: RowSettings, most: int):
    self.store = store
    self.seq_len = settings.seq_len
    self.most = most
    self._eot = settings.tokenizer.eot
    groups = list(self._groups())
    fitting = [group for group in groups if self._prompt_fits(group)]
    require(len(fitting) > 0, 'seq_len', self.seq_len,
            f'no answer begins within it in any of {len(groups)} rows: raise it')
    distinct = [self._without_equal(group) for group in fitting]
    self._rows = [group for group in distinct if len({self._rank(number) for number in group}) > 1]
    require(len(self._rows) > 0, 'seq_len', self.seq_len, 'within it all answers of a row are equal: raise it')
    self.num_left_out = len(groups) - len(fitting)
    self.num_equal = len(fitting) - len(self._rows)
    self.num_cut = sum(any(self._is_cut(number) for number in group) for group in self._rows)
    numbers = [number for group in self._rows for number in group]
    self.num_targets = sum(int(store.target_counts[self._part(number)].sum()) for number in numbers)

  def _groups(self) -> Iterator[list[int]]:
    """The numbers of the documents of each row."""
    group: list[int] = []
    for number in range(self.store.num_documents):
      if self._behind(number)[0] == 0 and group:
        yield group
        group = []
      group.append(number)
    yield group

  def _behind(self, number: int) -> np.ndarray:
    end = int(self.store.offsets[number + 1])
    return self.store.tokens[end - BEHIND:end]

  def _rank(self, number: int) -> int:
    return int(self._behind(number)[1])

  def _whole(self, number: int) -> tuple[int, int]:
    """Where a document begins and ends, without what stands behind it."""
    return int(self.store.offsets[number]), int(self.store.offsets[number + 1]) - BEHIND

  def _part(self, number: int) -> slice:
    """What of a document is in its row."""
    first, last = self._whole(number)
    return slice(first, min(last, first + self.seq_len + 1))

  def _is_cut(self, number: int) -> bool:
    return self._part(number).stop < self._whole(number)[1]

  def _prompt_fits(self, group: Sequence[int]) -> bool:
    first, last = self._whole(group[0])
    return int(np.argmax(self.store.target_counts[first:last])) <= self.seq_len

  def _without_equal(self, group: Sequence[int]) -> list[int]:
    """The best of those that are equal within their row."""
    kept: dict[bytes, int] = {}
    for number in sorted(group, key=self._rank):
      kept.setdefault(np.ascontiguousarray(self.store.tokens[self._part(number)]).tobytes(), number)
    return sorted(kept.values())

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, row: int) -> Fields:
    group = self._rows[row]
    missing = self.most - len(group)
    answers = [self._sequence(self._part(number)) for number in group]
    ranks = [np.int32(self._rank(number)) for number in group]
    return {'answers': (*answers, *[self._nothing] * missing), 'ranks': (*ranks, *[np.int32(ABSENT)] * missing)}

  def _sequence(self, part: slice) -> Fields:
    num_inputs = part.stop - part.start - 1
    return assemble([(self.store.tokens[part], self.store.target_counts[part], num_inputs)], self.seq_len, self._eot)

  @property
  def _nothing(self) -> Fields:
    return assemble((), self.seq_len, 0)

  @property
  def padding(self) -> Fields:
    return {'answers': (self._nothing,) * self.most, 'ranks': (np.int32(ABSENT),) * self.most}

  @staticmethod
  def to_batch(fields: Fields) -> RankedBatch:
    answers = tuple(LanguageModelBatch(**answer) for answer in fields['answers'])
    return RankedBatch(**{**fields, 'answers': answers})

  def documents(self, row: int) -> Iterator[np.ndarray]:
    """The ids of all answers."""
    return (self.store.tokens[self._part(number)] for number in self._rows[row])

  def warnings(self) -> Iterator[str]:
    count = len(self) + self.num_left_out + self.num_equal
    if self.num_left_out:
      yield f'{self.num_left_out} of {count} rows left out, their prompt fills seq_len={self.seq_len}'
    if self.num_equal:
      yield f'{self.num_equal} of {count} rows left out, their answers are equal within seq_len={self.seq_len}'
    if self.num_cut:
      yield f'{self.num_cut} of {len(self)} rows have an answer longer than seq_len={self.seq_len}, which is cut'


@dataclasses.dataclass(frozen=True)
class RankedEncoder(Encoder[Ranked]):
  """An answer is stored as its template writes it; behind it stand its place among the answers to its prompt, from 0
  on, and its rank.

  most: answers of a row.
  """
  template: str | None
  most: int
  has_counts = True

  @property
  def versions(self) -> dict[str, int]:
    return {'chat': chat_templates.FORMAT, 'ranked': 1}

  def check(self, tokenizer: Tokenizer) -> None:
    chat_templates.check_template(self.template, tokenizer)
    require(tokenizer.vocab_size > self.most, 'answers', self.most,
            f'ranks are stored as ids, of which the tokenizer has {tokenizer.vocab_size}: use fewer')

  def length(self, document: Ranked) -> int:
    return sum(answer.length for answer in document.answers)

  def encode(self, documents: Sequence[Ranked], tokenizer: Tokenizer) -> Iterator[Encoded]:
    for document in documents:
      for place, (answer, rank) in enumerate(zip(document.answers, document.ranks, strict=True)):
        encoded = encode_dialogue(answer, self.template, tokenizer, mask_formatting=True)
        assert encoded.counts is not None
        counts = np.concatenate([encoded.counts, np.zeros(BEHIND, encoded.counts.dtype)])
        yield Encoded((*encoded.ids, np.array([place, rank])), encoded.num_bytes, counts)

  def text(self, document: Ranked) -> str:
    """The prompt once."""
    first, *others = document.answers
    return '\n'.join([first.text, *(text for other in others for text in other.answers)])

  def learnt_bytes(self, document: Ranked, tokenizer: Tokenizer) -> Iterator[bytes]:
    for answer in document.answers:
      yield answer.learnt

  def make_rows(self, store: TokenStore, settings: RowSettings) -> RankedRows:
    return RankedRows(store, settings, self.most)
