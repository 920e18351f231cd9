"""Texts with a class to rows: several whole texts a row, the class of each at its last token.

A text is `start text extract`, a pair `start first delimiter second extract`; the class is read at the extract token
(Radford et al. 2018, GPT-1, section 3.3). A token store holds the class behind it, as the document's last token.
"""
import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.batch import LabelledBatch, LanguageModelBatch
from llm_jax.config.errors import require
from llm_jax.config.source import SourceConfig
from llm_jax.data.packing.pieces import BestFit, assemble
from llm_jax.data.packing.rows import Encoded, Encoder, Fields, Rows, RowSettings
from llm_jax.data.token_store import TokenStore
from llm_jax.data.tokenizers.base import Tokenizer, opened

FORMAT = 1  # raise it when the same texts are stored in another way
NO_CLASS = -1


class Example(NamedTuple):
  """A text, or the two of a pair, and the place of its class among the source's labels."""
  texts: tuple[str, ...]
  label: int

  @property
  def text(self) -> str:
    """All of it, one text a line."""
    return '\n'.join(self.texts)

  @property
  def learnt(self) -> bytes:
    """UTF-8 of its texts."""
    return ''.join(self.texts).encode()


class LabelledRows(Rows):
  """Rows of a store of labelled texts: `rows[i]` is {'text', 'labels'}, the fields of LabelledBatch.

  As many texts as fit share a row. One that is longer than a row is cut: of a pair the longer text loses its end until
  they are equally long, then both (GPT-1 keeps beginnings too).
  labels: the class of every text, int64. num_cut: texts that are cut. num_targets: of the language model.
  """

  def __init__(self, store: TokenStore, settings: RowSettings):
    self.store = store
    self.seq_len = settings.seq_len
    self._eot = settings.tokenizer.eot
    is_special = store.target_counts[:store.offsets[1]] == 0  # of the first text; the others have as many
    special = int(is_special.sum()) - 1  # the class is none
    least = 2 * special - 1
    require(self.seq_len >= least, 'seq_len', self.seq_len,
            f'{special} special tokens and a token of each text do not fit: use {least} or more')
    self.labels = np.array(store.tokens[store.offsets[1:] - 1], np.int64)
    inputs = np.diff(store.offsets) - 1  # the class is none
    kept = np.minimum(inputs, self.seq_len)
    self.num_cut = int((inputs > self.seq_len).sum())
    self.num_targets = int((kept - 1).sum())
    lengths = np.concatenate([[0], np.cumsum(kept + 1)])  # best fit leaves out a document's last token by itself
    kept_store = dataclasses.replace(store, offsets=lengths, fingerprint=f'{store.fingerprint} cut to {self.seq_len}')
    self.packing = BestFit(kept_store, self.seq_len, settings.seed)

  def __len__(self) -> int:
    return self.packing.num_rows

  def __getitem__(self, row: int) -> Fields:
    examples = [document for document, _, _ in self.packing.pieces(row)]
    texts = [self._ids(document) for document in examples]
    labels = np.full(self.seq_len, NO_CLASS, np.int32)
    last_tokens = np.cumsum([len(ids) for ids in texts]) - 1
    labels[last_tokens] = self.labels[examples]
    pieces = [(ids, _equal_shares(len(ids)), len(ids)) for ids in texts]
    return {'text': assemble(pieces, self.seq_len, self._eot), 'labels': labels}

  @property
  def padding(self) -> Fields:
    return {'text': assemble((), self.seq_len, 0), 'labels': np.full(self.seq_len, NO_CLASS, np.int32)}

  @staticmethod
  def to_batch(fields: Fields) -> LabelledBatch:
    return LabelledBatch(**{**fields, 'text': LanguageModelBatch(**fields['text'])})

  def documents(self, row: int) -> Iterator[np.ndarray]:
    """The ids of every text of a row, with its special tokens."""
    return (self._ids(document) for document, _, _ in self.packing.pieces(row))

  def warnings(self) -> Iterator[str]:
    if self.num_cut:
      yield f'{self.num_cut} of {self.store.num_documents} texts are longer than seq_len={self.seq_len} and are cut'

  @classmethod
  def check(cls, parts: Sequence['LabelledRows'], source: SourceConfig) -> None:
    """Refuses a class that no training text has: nothing would be learnt of it."""
    found = {int(label) for part in parts for label in np.unique(part.labels)}
    missing = tuple(label for i, label in enumerate(source.classes or ()) if i not in found)
    require(not missing, 'labels', missing, 'no training text has such a label: leave it out, or correct the data')

  @classmethod
  def known_scores(cls, parts: Sequence['LabelledRows']) -> dict[str, float]:
    """most_common_class: the share of the class that most texts have, which a constant answer gets right."""
    labels = np.concatenate([part.labels for part in parts])
    return {'most_common_class': float(np.bincount(labels).max() / len(labels))}

  def _ids(self, document: int) -> np.ndarray:
    first, end = self.store.offsets[document:document + 2]
    text = slice(first, end - 1)
    return cut(self.store.tokens[text], self.store.target_counts[text] == 0, self.seq_len)


def _equal_shares(length: int) -> np.ndarray:
  """Weights of a text's tokens as targets: all but the first, one in sum."""
  return np.full(length, 1 / (length - 1), np.float32)


def cut(ids: np.ndarray, special: np.ndarray, length: int) -> np.ndarray:
  """At most `length` of the ids. special: which of them stand before, between and behind the one or two texts."""
  if len(ids) <= length:
    return ids
  places = np.flatnonzero(special)
  sizes = np.diff(places) - 1
  room = length - len(places)
  second = min(sizes[1], max(room // 2, room - sizes[0])) if len(sizes) == 2 else 0
  keep = (room - second, second)
  parts = [ids[place:place + 1 + size] for place, size in zip(places, keep, strict=False)][:len(sizes)]
  return np.concatenate([*parts, ids[places[-1]:]])


@dataclasses.dataclass(frozen=True)
class LabelledEncoder(Encoder[Example]):
  """special_tokens: before a text, between two texts, and behind; '' is what the tokenizer puts before a document, and
  its end of text."""
  special_tokens: tuple[str, ...]
  has_counts = True

  @property
  def versions(self) -> dict[str, int]:
    return {'labelled': FORMAT}

  def check(self, tokenizer: Tokenizer) -> None:
    """Refuses special tokens that the tokenizer lacks."""
    missing = tuple(name for name in self.special_tokens if name and name not in tokenizer.special_ids)
    require(not missing, 'special_tokens', missing, f'the tokenizer has {tuple(tokenizer.special_ids)}: name some of '
            "these, or leave '' for its end of text")

  def length(self, document: Example) -> int:
    return len(document.text)

  def encode(self, documents: Sequence[Example], tokenizer: Tokenizer) -> Iterator[Encoded]:
    """The text between its special tokens, then the class; counts are 1 for the tokens of the text."""
    beginning = opened(tokenizer, ())[-1]
    start, delimiter, extract = (tokenizer.special_ids[name] if name else usual for name, usual in zip(
      self.special_tokens, (beginning, tokenizer.eot, tokenizer.eot), strict=True))
    encoded = iter(tokenizer.encode_batch([text for example in documents for text in example.texts]))
    for example in documents:
      ids, counts = [], []
      for special, _ in zip((start, delimiter), example.texts, strict=False):
        text = next(encoded)
        ids += [[special], text]
        counts += [[0], np.ones(len(text))]
      ids.append([extract, example.label])
      counts.append([0, 0])
      yield Encoded(ids, len(example.learnt), np.concatenate(counts))

  def text(self, document: Example) -> str:
    return document.text

  def learnt_bytes(self, document: Example, tokenizer: Tokenizer) -> Iterator[bytes]:
    yield document.learnt

  def make_rows(self, store: TokenStore, settings: RowSettings) -> LabelledRows:
    return LabelledRows(store, settings)
