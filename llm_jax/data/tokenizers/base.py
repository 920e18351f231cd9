"""Text to token ids and back: what a tokenizer is, how one is made of a configuration and read from a folder.

Every tokenizer encodes untrusted text without ever yielding a special id, and has a fingerprint: the sha256 of all that
determines its ids.
"""
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from llm_jax.config import experiment as config
from llm_jax.config.errors import ConfigError, require
from llm_jax.data.tokenizers.byte_level import END_OF_TEXT, ByteTokenizer, RankTokenizer, load_ranks, train
from llm_jax.data.tokenizers.files import HUGGING_FACE_FILE, META_FILE, RANKS_FILE
from llm_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from llm_jax.data.tokenizers.pre_tokenization import pattern_for
from llm_jax.data.tokenizers.published import CONFIG, read_files
from llm_jax.data.tokenizers.rendered import Rendered, Span
from llm_jax.runtime.array_file import ArrayFile
from llm_jax.runtime.buckets import place
from llm_jax.runtime.hub import model_folder

PIECE_IDS = 1 << 24  # looked at in one go


class Tokenizer(Protocol):
  """What the rest of the code needs of a tokenizer.

  eot: the special id that ends a text.
  begin, end: the ids before and behind every document.
  special_ids: every special token by name, `eot` among them; no text is ever encoded to one of these ids.
  fingerprint: two tokenizers with one fingerprint give the same ids.
  named: special tokens by the names that chat templates of models know them by, such as 'bos_token'.
  chat_templates: those that the tokenizer's folder brings, in Jinja, by name.
  """
  vocab_size: int
  eot: int
  special_ids: dict[str, int]
  fingerprint: str
  named: dict[str, str]
  chat_templates: dict[str, str]

  @property
  def begin(self) -> tuple[int, ...]: ...

  @property
  def end(self) -> tuple[int, ...]: ...

  def encode(self, text: str) -> list[int]: ...

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of each text, unsigned integers."""
    ...

  def encode_rendered(self, rendered: Rendered) -> tuple[list[int], list[Span]]:
    """Ids of a conversation that a chat template wrote, encoded as one text in which the names of special tokens are
    these tokens, except in guarded pieces; and the characters of the text that each id stands for."""
    ...

  def added_names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that are ids of their own in a rendered conversation: of special tokens, and of others that are no mere
    words or white space."""
    ...

  def decode(self, ids: Iterable[int]) -> str:
    """Bytes that are no UTF-8 become U+FFFD."""
    ...

  def decode_bytes(self, ids: Iterable[int]) -> bytes: ...

  def save(self, folder: str | os.PathLike[str]) -> None:
    """Writes the files that `load_tokenizer` reads."""
    ...


def make_tokenizer(tokenizer: config.Tokenizer, texts: Callable[[], Iterator[str]] | None = None) -> Tokenizer:
  """The tokenizer that a configuration describes.   texts: gives training text; only BPE reads it.

  Raises:
    ConfigError: names what is wrong with the configuration or with a file that it names.
  """
  match tokenizer:
    case config.Bytes():
      return ByteTokenizer()
    case config.BPE(vocab_size, pattern, split_digits, sample_bytes, special_tokens):
      if texts is None:
        raise ConfigError('tokenizer', tokenizer, 'needs text to train on: give `texts`')
      return train(texts(), vocab_size, pattern, split_digits, sample_bytes, special_tokens)
    case config.TiktokenFile(path, pattern, special_tokens, split_digits):
      end_of_text = _end_of_text(tokenizer)
      return RankTokenizer(load_ranks(path), pattern_for(pattern, split_digits), special_tokens, end_of_text)
    case config.HuggingFaceFile(path, end_of_text, revision):
      if tokenizer.hub_name is not None:
        return _read_hugging_face(model_folder(path, revision, weights=False) / HUGGING_FACE_FILE, end_of_text)
      return _read_hugging_face(pathlib.Path(path), end_of_text)
    case _:
      raise ConfigError('tokenizer', tokenizer, 'use Bytes, BPE, TiktokenFile or HuggingFaceFile')


def _read_hugging_face(path: pathlib.Path, end_of_text: str) -> HuggingFaceTokenizer:
  """A `tokenizer.json`, with what stands beside it in a model's folder."""
  try:
    content = path.read_bytes()
    files = read_files(path.parent)
  except OSError as error:
    hint = f'cannot be read ({error.strerror}): name a tokenizer.json'
    raise ConfigError('tokenizer.path', str(path), hint) from error
  tokenizer = HuggingFaceTokenizer(content, end_of_text, files)
  if tokenizer.lacks_beginning:
    logging.warning('%s: add_bos_token = true, which transformers does not read beside a tokenizer.json, whose '
                    'post-processor puts no such token there: documents begin without it', path.with_name(CONFIG))
  return tokenizer


def _end_of_text(tokenizer: config.TiktokenFile) -> str:
  special_tokens = tokenizer.special_tokens
  named = [name for name in special_tokens if name]
  require(bool(named), 'tokenizer.special_tokens', special_tokens, f'name the end of text, such as ({END_OF_TEXT!r},)')
  require(len(set(named)) == len(named), 'tokenizer.special_tokens', special_tokens, 'names must differ')
  end_of_text = tokenizer.end_of_text or named[0]
  require(end_of_text in named, 'tokenizer.end_of_text', end_of_text, f'name one of special_tokens={special_tokens}')
  return end_of_text


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
  """What `save` wrote.

  Raises:
    ConfigError: the folder holds no tokenizer, or one that does not have the saved fingerprint.
  """
  folder = place(folder)
  try:
    meta = json.loads((folder / META_FILE).read_bytes())
    tokenizer = _load(folder, meta)
    saved = meta['fingerprint']
  except ConfigError:
    raise
  except (OSError, ValueError, KeyError, TypeError) as error:
    hint = f'not a saved tokenizer ({error!r}): name the folder that holds {META_FILE}'
    raise ConfigError('tokenizer', str(folder), hint) from error
  require(tokenizer.fingerprint == saved, 'tokenizer', str(folder),
          f'changed since it was saved: fingerprint {tokenizer.fingerprint[:16]}, saved {saved[:16]}')
  return tokenizer


def _load(folder: pathlib.Path, meta: dict[str, Any]) -> Tokenizer:
  match meta['kind']:
    case 'bytes':
      return ByteTokenizer()
    case 'ranks':
      ranks = load_ranks(folder / RANKS_FILE)
      return RankTokenizer(ranks, meta['pattern'], meta['control'], meta['end_of_text'])
    case 'huggingface':
      content = (folder / HUGGING_FACE_FILE).read_bytes()
      return HuggingFaceTokenizer.load(content, meta, lambda name: (folder / name).read_bytes())
    case kind:
      raise ConfigError('tokenizer.kind', kind, 'written by another version of llm_jax')


def opened(tokenizer: Tokenizer, ids: Iterable[int]) -> list[int]:
  """The ids of a text that is to be continued, behind what a document begins with. Where that leaves nothing at all,
  the beginning of text that the model knows stands there, or the end of text, which the next text follows."""
  beginning = tokenizer.special_ids.get(tokenizer.named.get('bos_token', ''), tokenizer.eot)
  return [*tokenizer.begin, *map(int, ids)] or [beginning]


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
  """Refuses a model whose vocabulary is smaller than the tokenizer's. Published models have tokenizers with more tokens
  than rows in the embedding; of these only the ones that stand around every document are asked for here."""
  needed = tokenizer.vocab_size
  if isinstance(tokenizer, HuggingFaceTokenizer):
    needed = 1 + max(*tokenizer.begin, *tokenizer.end, tokenizer.eot)
  require(vocab_size >= needed, 'model.vocab_size', vocab_size, f"smaller than the tokenizer's: use {needed} or more")


def check_ids(ids: np.ndarray | ArrayFile, tokenizer: Tokenizer, vocab_size: int) -> None:
  """Refuses text that uses a token for which the model has no row; names the token and what stands around it.

  ids: int [tokens].   vocab_size: rows of the model's embedding.
  """
  if tokenizer.vocab_size <= vocab_size:
    return
  for start in range(0, len(ids), PIECE_IDS):
    piece = ids[start:start + PIECE_IDS]
    place = int(np.argmax(piece >= vocab_size))
    found = int(piece[place])
    if found >= vocab_size:
      around = tokenizer.decode(piece[max(place - 8, 0):place + 8].tolist())
      raise ConfigError('text', around, f'it uses the token {tokenizer.decode([found])!r}, id {found}, and the '
                        f'embedding has {vocab_size} rows: take such text out, or enlarge the model, '
                        f'launch.convert --vocab_size={tokenizer.vocab_size}')


def bytes_per_token(tokenizer: Tokenizer) -> np.ndarray:
  """How many bytes of text each id stands for, int32 [vocab_size]; 0 for the end of text."""
  def num_bytes(*ids: int) -> int:
    return len(tokenizer.decode_bytes(ids))

  # Behind another token, since some tokenizers drop the space of a first word.
  sizes = np.array([num_bytes(i, i) - num_bytes(i) for i in range(tokenizer.vocab_size)], np.int32)
  sizes[tokenizer.eot] = 0
  return sizes
