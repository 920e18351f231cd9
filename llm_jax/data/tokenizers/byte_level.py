"""Byte-level tokenizers: bytes as they are, and BPE on them, trained or read from a tiktoken rank file."""
import abc
import base64
import binascii
import concurrent.futures
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tiktoken

from llm_jax.config.errors import ConfigError, require
from llm_jax.data import fingerprints
from llm_jax.data.tokenizers.files import META_FILE, RANKS_FILE, encode_meta, write_files
from llm_jax.data.tokenizers.panics import refusing_panics
from llm_jax.data.tokenizers.pre_tokenization import cut, is_named, pattern_for
from llm_jax.data.tokenizers.rendered import Rendered, Span

END_OF_TEXT = '<|endoftext|>'
NUM_BYTES = 256
REPLACEMENT = '\N{REPLACEMENT CHARACTER}'.encode()


def utf8(text: str) -> bytes:
  """UTF-8 of any Python string; lone surrogates, which UTF-8 has none for, become U+FFFD."""
  try:
    return text.encode()
  except UnicodeEncodeError:
    return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace').encode()


class OwnTokenizer(abc.ABC):
  """What our own tokenizers share: every document stands between two ends of text, and they bring no chat template."""
  eot: int
  special_ids: dict[str, int]
  named: dict[str, str] = {}
  chat_templates: dict[str, str] = {}

  @property
  def begin(self) -> tuple[int, ...]:
    return (self.eot,)

  @property
  def end(self) -> tuple[int, ...]:
    return (self.eot,)

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]: ...

  @abc.abstractmethod
  def _bytes_of(self, ids: Sequence[int]) -> list[bytes]:
    """The bytes of every token."""

  def added_names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(self.special_ids), ()

  def encode_rendered(self, rendered: Rendered) -> tuple[list[int], list[Span]]:
    ids: list[int] = []
    spans: list[Span] = []
    for start, text, special in self._runs(rendered):
      if special is not None:
        ids.append(special)
        spans.append((start, start + len(text)))
      elif text:
        found = self.encode(text)
        ids += found
        spans += [(start + a, start + b) for a, b in _places(text, self._bytes_of(found))]
    return ids, spans

  def _runs(self, rendered: Rendered) -> Iterator[tuple[int, str, int | None]]:
    """(place, text, None) of a text between two special tokens, and (place, name, id) of a special token."""
    longest_first = sorted(self.special_ids, key=len, reverse=True)
    names = re.compile('|'.join(map(re.escape, longest_first)))
    start = place = 0
    run = ''
    for piece in rendered.pieces:
      last = 0
      for found in () if piece.is_guarded else names.finditer(piece.text):
        yield start, run + piece.text[last:found.start()], None
        yield place + found.start(), found[0], self.special_ids[found[0]]
        run = ''
        last = found.end()
        start = place + last
      run += piece.text[last:]
      place += len(piece.text)
    yield start, run, None


def _places(text: str, tokens: Sequence[bytes]) -> list[Span]:
  """The characters of which each token has a part."""
  ends = np.cumsum([len(utf8(character)) for character in text])  # of each character, in bytes
  token_ends = np.cumsum([len(token) for token in tokens])
  token_starts = token_ends - np.array([len(token) for token in tokens], np.int64)
  first = np.searchsorted(ends, token_starts, side='right')
  last = np.searchsorted(ends, token_ends, side='left')
  return list(zip(first.tolist(), (last + 1).tolist(), strict=True))


class ByteTokenizer(OwnTokenizer):
  """The 256 bytes of UTF-8 and one special token, 256."""
  vocab_size: int = NUM_BYTES + 1
  eot: int = NUM_BYTES
  special_ids: dict[str, int] = {END_OF_TEXT: NUM_BYTES}
  fingerprint: str = fingerprints.of({'kind': 'bytes'})

  def encode(self, text: str) -> list[int]:
    return list(utf8(text))

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.frombuffer(utf8(text), np.uint8) for text in texts]

  def decode(self, ids: Iterable[int]) -> str:
    return self.decode_bytes(ids).decode('utf-8', 'replace')

  def decode_bytes(self, ids: Iterable[int]) -> bytes:
    return b''.join(self._spell(int(i)) for i in ids)

  def _bytes_of(self, ids: Sequence[int]) -> list[bytes]:
    return [self._spell(i) for i in ids]

  def _spell(self, i: int) -> bytes:
    if i < NUM_BYTES:
      return bytes([i])
    return END_OF_TEXT.encode() if i == self.eot else REPLACEMENT

  def save(self, folder: str | os.PathLike[str]) -> None:
    write_files(folder, {META_FILE: encode_meta({'kind': 'bytes', 'fingerprint': self.fingerprint})})


class RankTokenizer(OwnTokenizer):
  """Byte-level BPE by ranks, encoded by tiktoken.

  ranks: {bytes of the token: id}, lower ids merged first.
  pattern: a regular expression.
  special_tokens: names of the ids after the ranks, in order; '' leaves an id unused.
  end_of_text: the one that separates documents.
  """

  def __init__(self, ranks: Mapping[bytes, int], pattern: str, special_tokens: Sequence[str], end_of_text: str):
    self.ranks = dict(ranks)
    self.pattern = pattern
    self.special_tokens = tuple(special_tokens)
    self.end_of_text = end_of_text
    first = max(ranks.values()) + 1
    self.special_ids: dict[str, int] = {name: first + i for i, name in enumerate(special_tokens) if name}
    self.vocab_size: int = first + len(self.special_tokens)
    self.eot: int = self.special_ids[end_of_text]
    self.fingerprint: str = fingerprints.of({
      'kind': 'ranks',
      'pattern': pattern,
      'control': self.special_tokens,  # the name is part of the fingerprint of every tokenizer that was ever saved
      'end_of_text': end_of_text,
      'ranks': hashlib.sha256(dump_ranks(self.ranks)).hexdigest(),
    })
    try:
      self._tiktoken = tiktoken.Encoding('llm_jax', pat_str=pattern, mergeable_ranks=self.ranks,
                                         special_tokens=self.special_ids)
    except ValueError as error:
      raise ConfigError('tokenizer.pattern', pattern, f'not a regular expression: {error}') from error
    self._is_named = is_named(pattern)  # and so matches every character, and cuts where `cut` does

  def encode(self, text: str) -> list[int]:
    ids: list[int] = []
    for piece in self._cut(text):
      ids += self._encode_piece(piece).tolist()
    return ids

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    pieces_of = [self._cut(text) for text in texts]
    pieces = [piece for group in pieces_of for piece in group]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # tiktoken releases the interpreter's lock
      encoded = pool.map(self._encode_piece, pieces)
      return [np.concatenate([next(encoded) for _ in group]) for group in pieces_of]

  def decode(self, ids: Iterable[int]) -> str:
    return self.decode_bytes(ids).decode('utf-8', 'replace')

  def decode_bytes(self, ids: Iterable[int]) -> bytes:
    ids = [int(i) for i in ids]
    try:
      return self._tiktoken.decode_bytes(ids)
    except KeyError:  # an id that no token has, sampled from a vocabulary larger than the tokenizer's
      known = set(self.ranks.values()) | set(self.special_ids.values())
      return b''.join(self._tiktoken.decode_bytes([i]) if i in known else REPLACEMENT for i in ids)

  def _bytes_of(self, ids: Sequence[int]) -> list[bytes]:
    return self._tiktoken.decode_tokens_bytes(ids)

  def save(self, folder: str | os.PathLike[str]) -> None:
    meta = {
      'kind': 'ranks',
      'pattern': self.pattern,
      'control': self.special_tokens,
      'end_of_text': self.end_of_text,
      'fingerprint': self.fingerprint,
    }
    write_files(folder, {RANKS_FILE: dump_ranks(self.ranks), META_FILE: encode_meta(meta)})

  def _cut(self, text: str) -> list[str]:
    try:
      text.encode()  # tiktoken accepts only what UTF-8 can hold
    except UnicodeEncodeError:
      text = utf8(text).decode()
    return list(cut(text, self._is_named))

  def _encode_piece(self, piece: str) -> np.ndarray:
    with refusing_panics('tokenizer.pattern', self.pattern):
      ids = self._tiktoken.encode_to_numpy(piece, disallowed_special=())
    if not self._is_named:
      self._check_whole(piece.encode(), self._tiktoken.decode_bytes(ids.tolist()))
    return ids

  def _check_whole(self, text: bytes, kept: bytes) -> None:
    """tiktoken drops what a pattern does not match: raises ConfigError that shows the first such place."""
    if kept == text:
      return
    lost = len(kept)
    for i, (ours, theirs) in enumerate(zip(text, kept, strict=False)):
      if ours != theirs:
        lost = i
        break
    following = text[lost:lost + 16].decode(errors='replace')
    raise ConfigError('tokenizer.pattern', self.pattern, f'leaves out text, before {following!r}: let it match every '
                      r'character, such as by |[\s\S] at its end')


# ---------------------------------------------------------------------------------------------- rank files
def dump_ranks(ranks: Mapping[bytes, int]) -> bytes:
  """tiktoken's rank file: one `base64(token) rank` a line."""
  by_rank = sorted(ranks.items(), key=lambda item: item[1])
  return b''.join(base64.b64encode(token) + b' %d\n' % rank for token, rank in by_rank)


def load_ranks(path: str | os.PathLike[str]) -> dict[bytes, int]:
  """Reads a tiktoken rank file. (tiktoken's own reader keeps a copy by path and would not see an edited file.)

  Raises:
    ConfigError: it cannot be read, or is no rank file of all bytes; the message names the line.
  """
  try:
    content = pathlib.Path(path).read_bytes()
  except OSError as error:
    hint = f'cannot be read ({error.strerror}): name a tiktoken rank file'
    raise ConfigError('tokenizer.path', str(path), hint) from error
  ranks: dict[bytes, int] = {}
  for number, line in enumerate(content.splitlines(), 1):
    if not line.strip():
      continue
    try:
      token, rank = line.split()
      ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as error:
      hint = 'not a line of `base64 rank`: use a tiktoken rank file'
      raise ConfigError('tokenizer.path', f'{path}:{number}', hint) from error
  missing = [byte for byte in range(NUM_BYTES) if bytes([byte]) not in ranks]
  require(not missing, 'tokenizer.path', str(path), f'not byte-level: bytes {missing[:3]} have no rank')
  require(len(set(ranks.values())) == len(ranks), 'tokenizer.path', str(path), 'two tokens share a rank')
  return ranks


# ---------------------------------------------------------------------------------------------- training
def train(texts: Iterable[str], vocab_size: int, pattern: str, split_digits: bool = False,
          sample_bytes: int = 20_000_000, special_tokens: Sequence[str] = ()) -> RankTokenizer:
  """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019, section 2.2) on the first `sample_bytes` of `texts`.

  The same texts give the same tokenizer. Where they hold fewer merges than `vocab_size` takes, the vocabulary is
  smaller. The last ids are those of the end of text and of the names in `special_tokens`.
  """
  import rustbpe
  names = (END_OF_TEXT, *special_tokens)
  are_distinct = all(names) and len(set(names)) == len(names)
  require(are_distinct, 'tokenizer.special_tokens', tuple(special_tokens),
          f'names must differ, from each other and from {END_OF_TEXT!r}, which is always there')
  expression = pattern_for(pattern, split_digits)
  sample = _Sample(texts, sample_bytes)
  trainer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]: it is compiled, without stubs
  try:
    with refusing_panics('tokenizer.pattern', expression):
      trainer.train_from_iterator(iter(sample), vocab_size=vocab_size - len(names), pattern=expression)
  except ConfigError:  # of a source that gives the texts
    raise
  except ValueError as error:
    raise ConfigError('tokenizer.pattern', expression, f'not a regular expression: {error}') from error
  require(sample.num_bytes > 0, 'data.sources', sample.num_bytes,
          'no text to train a tokenizer on: name a source with text')
  ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
  return RankTokenizer(ranks, expression, names, END_OF_TEXT)


class _Sample:
  """Pieces of texts, until `most` bytes of them are read.   num_bytes: how many were read."""

  def __init__(self, texts: Iterable[str], most: int):
    self._texts = texts
    self._most = most
    self.num_bytes = 0

  def __iter__(self) -> Iterator[str]:
    for text in self._texts:
      for piece in cut(utf8(text).decode(), safe=True):
        if self.num_bytes >= self._most:
          return
        self.num_bytes += len(piece.encode())
        yield piece
