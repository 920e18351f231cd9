"""Text to rows: documents packed into rows of the stage's sequence length."""
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from llm_jax.batch import LanguageModelBatch
from llm_jax.config.errors import ConfigError
from llm_jax.data.packing.pieces import BestFit, Concat, Packing, assemble
from llm_jax.data.packing.rows import Encoded, Encoder, Fields, LengthStart, Rows, RowSettings
from llm_jax.data.token_store import TokenStore
from llm_jax.data.tokenizers.base import Tokenizer, bytes_per_token

PACKINGS: dict[str, type[Concat] | type[BestFit]] = {'concat': Concat, 'best_fit': BestFit}
PIECE_TOKENS = 1 << 24  # of a document that is tokenised already, looked at in one go


class TextRows(Rows):
  """Rows of one store under a packing: `rows[i]` has the fields of LanguageModelBatch.

  window: which part of the documents, in the order that the seed gives them.
  num_cut: how many documents go on in another row.
  """

  def __init__(self, store: TokenStore, settings: RowSettings, window: slice = slice(None)):
    self.store, self.settings = store, settings
    self.seq_len = settings.seq_len
    self.packing: Packing = PACKINGS[settings.packing](store, settings.seq_len, settings.seed, window)
    self.num_targets = store.num_targets

  @property
  def num_cut(self) -> int:
    return self.packing.num_cut

  def open(self) -> None:
    self.packing.open()

  def part(self, window: slice) -> 'TextRows':
    """Rows of a part of the documents alone."""
    return TextRows(self.store, self.settings, window)

  def __len__(self) -> int:
    return self.packing.num_rows

  def __getitem__(self, row: int) -> Fields:
    return assemble(self._pieces(row), self.seq_len, self.settings.tokenizer.eot)

  @property
  def padding(self) -> Fields:
    return assemble((), self.seq_len, 0)

  @staticmethod
  def to_batch(fields: Fields) -> LanguageModelBatch:
    return LanguageModelBatch(**fields)

  def documents(self, row: int) -> Iterator[np.ndarray]:
    return (ids for ids, _, _ in self._pieces(row))

  def over_ramp(self, starts: Sequence[LengthStart], seed: int) -> Rows:
    from llm_jax.data.packing.ramp import RampRows  # which is made of rows of this kind
    return RampRows(self, starts, seed)

  def warnings(self) -> Iterator[str]:
    is_all_learnt = self.store.counts is None  # no target lacks what it is the answer to
    if is_all_learnt or not self.num_cut:
      return
    if self.settings.packing == 'best_fit':
      fate = f'are longer than seq_len={self.seq_len} and are cut'
    else:
      fate = (f'go on in another row of seq_len={self.seq_len}, where answers lack their questions: '
              "use packing='best_fit'")
    yield f'{self.num_cut} of {self.store.num_documents} conversations {fate}'

  def _pieces(self, row: int) -> Iterator[tuple[np.ndarray, np.ndarray | None, int]]:
    for document, start, length in self.packing.pieces(row):
      first, last = self.store.offsets[document:document + 2]
      part = slice(first + start, min(first + start + length + 1, last))
      yield self.store.tokens[part], None if self.store.counts is None else self.store.counts[part], length


class TextEncoder(Encoder[str]):
  """Each document stands between the ids that the tokenizer puts before and behind one, and every token is a target.

  Where it puts nothing before a document, nothing predicts its first token, whose bytes are not counted as learnt.
  """
  is_divisible = True

  def length(self, document: str) -> int:
    return len(document)

  def encode(self, documents: Sequence[str], tokenizer: Tokenizer) -> Iterator[Encoded]:
    begin, end = np.array(tokenizer.begin, np.int64), np.array(tokenizer.end)
    for text, ids in zip(documents, tokenizer.encode_batch(documents), strict=True):
      num_bytes = len(text.encode())
      if not len(begin):
        num_bytes -= min(num_bytes, len(tokenizer.decode_bytes(ids[:1])))
      yield Encoded((begin, ids, end), num_bytes)

  def text(self, document: str) -> str:
    return document

  def learnt_bytes(self, document: str, tokenizer: Tokenizer) -> Iterator[bytes]:
    yield document.encode()

  def make_rows(self, store: TokenStore, settings: RowSettings) -> TextRows:
    return TextRows(store, settings)


class TokenEncoder(Encoder[np.ndarray]):
  """Documents that are ids already, stored as TextEncoder stores text."""
  is_divisible = True
  has_text = False

  def length(self, document: np.ndarray) -> int:
    return len(document)

  def encode(self, documents: Sequence[np.ndarray], tokenizer: Tokenizer) -> Iterator[Encoded]:
    begin, end = np.array(tokenizer.begin, np.int64), np.array(tokenizer.end)
    widths = _bytes_per_token(tokenizer)
    for ids in documents:
      num_bytes = 0 if len(begin) else -int(widths[ids[0]])
      pieces = [begin]
      for start in range(0, len(ids), PIECE_TOKENS):
        piece = ids[start:start + PIECE_TOKENS]
        if piece.max() >= tokenizer.vocab_size:
          raise ConfigError('path', int(piece.max()), f'a token id beyond the vocabulary of {tokenizer.vocab_size}: '
                            'use the tokenizer that wrote the file, or the right dtype')
        pieces.append(piece)
        num_bytes += int(widths[piece].sum(dtype=np.int64))
      yield Encoded((*pieces, end), num_bytes)

  def text(self, document: np.ndarray) -> str:
    raise NotImplementedError('ids are no text')  # `has_text` says so

  def learnt_bytes(self, document: np.ndarray, tokenizer: Tokenizer) -> Iterator[bytes]:
    yield tokenizer.decode_bytes(document)

  def make_rows(self, store: TokenStore, settings: RowSettings) -> TextRows:
    return TextRows(store, settings)


@functools.lru_cache(maxsize=1)  # every batch of a file's documents wants the same
def _bytes_per_token(tokenizer: Tokenizer) -> np.ndarray:
  return bytes_per_token(tokenizer)
