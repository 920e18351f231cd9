"""What every kind of rows is: how documents are stored as tokens, and which training rows are made of these.

A kind is one file beside this one. It has an `Encoder` for what its sources read, a subclass of `Rows`, and names the
batch of `llm_jax/batch.py` that its rows become.
"""
import abc
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from llm_jax.config.source import SourceConfig
from llm_jax.data.token_store import TokenStore
from llm_jax.data.tokenizers.base import Tokenizer

Document = TypeVar('Document')
Fields = dict[str, Any]  # arrays of one row, nested as the batch is


class Encoded(NamedTuple):
  """A document as a token store holds it.

  ids: int [tokens], in pieces that follow each other.
  num_bytes: UTF-8 bytes of the text that is learnt.
  counts: [tokens], 1 for every token that is a target; None where all are.
  """
  ids: Sequence[np.ndarray]
  num_bytes: int
  counts: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class RowSettings:
  """How rows are made of a token store.

  packing: 'concat' or 'best_fit', for kinds that pack documents.
  seed: of the order of documents; None: as they are stored.
  """
  tokenizer: Tokenizer
  seq_len: int
  packing: str = 'concat'
  seed: int | None = None


@dataclasses.dataclass(frozen=True)
class LengthStart:
  """From where on a stage has another sequence length.   rows_before: rows that a source has given before."""
  seq_len: int
  rows_before: int


class Encoder(abc.ABC, Generic[Document]):
  """Writes the documents of a source into a token store, and makes rows of it.

  has_counts: whether some tokens are no targets.
  is_divisible: whether a source of one single document sets its end aside for evaluation.
  has_text: whether its documents hold text of their own, which a tokenizer can be trained on.
  """
  has_counts: bool = False
  is_divisible: bool = False
  has_text: bool = True

  @property
  def versions(self) -> dict[str, int]:
    """Of what is written, by name. Raise one where the same documents are stored in another way."""
    return {}

  def check(self, tokenizer: Tokenizer) -> None:
    """Raises ConfigError for a tokenizer that cannot write these documents."""

  @abc.abstractmethod
  def length(self, document: Document) -> int:
    """About how many characters (or ids) a document has."""

  @abc.abstractmethod
  def encode(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[Encoded]:
    """What is stored of each document, in order; a document may be stored as several."""

  @abc.abstractmethod
  def text(self, document: Document) -> str:
    """All the text of a document, for training a tokenizer."""

  @abc.abstractmethod
  def learnt_bytes(self, document: Document, tokenizer: Tokenizer) -> Iterator[bytes]:
    """UTF-8 of what is learnt of each document that is stored."""

  @abc.abstractmethod
  def make_rows(self, store: TokenStore, settings: RowSettings) -> 'Rows': ...


class Rows(abc.ABC):
  """Rows of one source in one split.

  store: the tokens that they are made of.
  num_targets: those of weight 1 in all rows.
  is_endless: whether rows are made as they are read, so that there is no epoch.
  """
  store: TokenStore
  num_targets: int
  is_endless: ClassVar[bool] = False

  def open(self) -> None:
    """Opens what rows are looked up in, when a stage begins; else the first row does."""
    return None

  @abc.abstractmethod
  def __len__(self) -> int:
    """Of an epoch."""

  @abc.abstractmethod
  def __getitem__(self, row: int) -> Fields:
    """Arrays [seq_len] under the names that the batch's fields have."""

  @property
  @abc.abstractmethod
  def padding(self) -> Fields:
    """A row without targets."""

  @staticmethod
  @abc.abstractmethod
  def to_batch(fields: Fields) -> Any:
    """The batch of several rows' fields, each [batch, seq_len]."""

  @abc.abstractmethod
  def documents(self, row: int) -> Iterator[np.ndarray]:
    """The ids of every document in a row, or of the piece of it that is there, with the target after it."""

  def order(self, seed: int) -> Callable[[int], int]:
    """(rows given before) -> the number of the next: all of them, in another order each epoch."""
    import grain
    order = grain.MapDataset.range(len(self)).shuffle(seed=seed).repeat()

    def number(count: int) -> int:
      row: Any = order[count]
      return int(row)

    return number

  def over_ramp(self, starts: Sequence[LengthStart], seed: int) -> 'Rows':
    """The rows of one sequence length in a stage that has several.   starts: of all lengths, in order."""
    return self

  def warnings(self) -> Iterator[str]:
    """What of the documents was cut or left out, a line each."""
    return iter(())

  @classmethod
  def check(cls, parts: Sequence[Any], source: SourceConfig) -> None:
    """Raises ConfigError where the training rows of all sources together lack what is to be learnt.

    source: the first of them.
    """
    return None

  @classmethod
  def known_scores(cls, parts: Sequence[Any]) -> dict[str, float]:
    """Scores of a split that need no model and that the model's are compared with, by name."""
    return {}
