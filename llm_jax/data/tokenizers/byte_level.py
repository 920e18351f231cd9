"""Byte-level tokenizers: bytes as they are, and BPE on them, trained or read from a tiktoken rank file."""
import base64
import binascii
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tiktoken

from llm_jax.config.errors import ConfigError, require
from llm_jax.data import fingerprints

# How text is cut before merging. gpt2: Radford et al. 2019 in tiktoken's equivalent form; cl100k: GPT-3.5 and GPT-4;
# llama3: Llama 3's tokenizer (meta-llama/llama-models). {digits} is where numbers are cut.
PATTERNS = {
  'gpt2': r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++|{digits}| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
  'cl100k': (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|{digits}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"
             r'\s*[\r\n]|\s+(?!\S)|\s'),
  'llama3': (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|{digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
             r'\s*[\r\n]+|\s+(?!\S)|\s+'),
}
DIGITS = {'gpt2': r' ?\p{N}++', 'cl100k': r'\p{N}{1,3}+', 'llama3': r'\p{N}{1,3}'}

END_OF_TEXT = '<|endoftext|>'
META_FILE, RANKS_FILE = 'llm_jax_tokenizer.json', 'ranks.tiktoken'

# Long texts are encoded in pieces of about PIECE characters, in parallel. The regular expression engine of tiktoken
# dies on runs of a million spaces, so no piece is longer than LONGEST.
PIECE, LONGEST = 1 << 16, 200_000
# Where every pattern above cuts too, so that pieces give the ids of the whole: before a lone space, after a lone line
# feed.
SAFE_CUT = re.compile(r'(?<=\S) (?=\S)|(?<=\S\n)(?=\S)')
REPLACEMENT = '\N{REPLACEMENT CHARACTER}'.encode()


def utf8(text: str) -> bytes:
  """UTF-8 of any Python string; lone surrogates, which UTF-8 has none for, become U+FFFD."""
  try:
    return text.encode()
  except UnicodeEncodeError:
    return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace').encode()


def pattern_for(name: str, split_digits: bool) -> str:
  """The regular expression for a pattern's name, or `name` itself where it is one."""
  if name in PATTERNS:
    return PATTERNS[name].replace('{digits}', r'\p{N}' if split_digits else DIGITS[name])
  require(not split_digits, 'tokenizer.split_digits', True,
          f'works with the patterns {tuple(PATTERNS)}; in a pattern of your own write \\p{{N}} for one digit')
  return name


def cut(text: str, safe: bool) -> Iterator[str]:
  """Pieces of a long text; `safe` cuts where the named patterns cut too."""
  start, size = 0, len(text)
  while size - start > PIECE:
    found = SAFE_CUT.search(text, start + PIECE, min(size, start + LONGEST)) if safe else None
    end = found.start() if found else min(size, start + LONGEST)
    yield text[start:end]
    start = end
  if start < size or not size:
    yield text[start:]


class ByteTokenizer:
  """The 256 bytes of UTF-8 and one special token, 256."""
  vocab_size, eot = 257, 256
  special_ids = {END_OF_TEXT: 256}
  fingerprint = fingerprints.of({'kind': 'bytes'})

  def encode(self, text: str) -> list[int]:
    return list(utf8(text))

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.frombuffer(utf8(text), np.uint8) for text in texts]

  def decode(self, ids: Iterable[int]) -> str:
    return self.decode_bytes(ids).decode('utf-8', 'replace')

  def decode_bytes(self, ids: Iterable[int]) -> bytes:
    special_tokens = END_OF_TEXT.encode()
    return b''.join(bytes([i]) if i < 256 else special_tokens if i == self.eot else REPLACEMENT for i in map(int, ids))

  def save(self, folder: str | os.PathLike) -> None:
    _write(folder, {META_FILE: _json({'kind': 'bytes', 'fingerprint': self.fingerprint})})


class RankTokenizer:
  """Byte-level BPE by ranks, encoded by tiktoken.

  ranks: {bytes of the token: id}, lower ids merged first. pattern: a regular expression. special_tokens: names of the
  ids after the ranks, in order; '' leaves an id unused. end_of_text: the one that separates documents.
  """

  def __init__(self, ranks: dict[bytes, int], pattern: str, special_tokens: Sequence[str], end_of_text: str):
    self.ranks, self.pattern, self.special_tokens, self.end_of_text = ranks, pattern, tuple(special_tokens), end_of_text
    first = max(ranks.values()) + 1
    self.special_ids = {name: first + i for i, name in enumerate(special_tokens) if name}
    self.vocab_size, self.eot = first + len(self.special_tokens), self.special_ids[end_of_text]
    self.fingerprint = fingerprints.of({
      'kind': 'ranks', 'pattern': pattern, 'control': self.special_tokens, 'end_of_text': end_of_text,
      'ranks': hashlib.sha256(dump_ranks(ranks)).hexdigest()})
    try:
      self._tiktoken = tiktoken.Encoding('llm_jax', pat_str=pattern, mergeable_ranks=ranks,
                                         special_tokens=self.special_ids)
    except ValueError as error:
      raise ConfigError('tokenizer.pattern', pattern, f'not a regular expression: {error}') from error
    self._safe = pattern in {pattern_for(name, split) for name in PATTERNS for split in (False, True)}

  def _encode_piece(self, piece: str) -> np.ndarray:
    ids = self._tiktoken.encode_to_numpy(piece, disallowed_special=())
    if not self._safe:  # tiktoken drops what a pattern does not match
      text, kept = piece.encode(), self._tiktoken.decode_bytes(ids.tolist())
      if kept != text:
        at = next((i for i, (a, b) in enumerate(zip(text, kept, strict=False)) if a != b), len(kept))
        raise ConfigError('tokenizer.pattern', self.pattern, f'leaves out text, before '
                          f'{text[at:at + 16].decode(errors="replace")!r}: let it match every character, '
                          r'such as by |[\s\S] at its end')
    return ids

  def _cut(self, text: str) -> list[str]:
    try:
      text.encode()  # tiktoken accepts only what UTF-8 can hold
    except UnicodeEncodeError:
      text = utf8(text).decode()
    return list(cut(text, self._safe))

  def encode(self, text: str) -> list[int]:
    return [i for piece in self._cut(text) for i in self._encode_piece(piece).tolist()]

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    pieces = [self._cut(text) for text in texts]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # tiktoken releases the interpreter's lock
      done = pool.map(self._encode_piece, [piece for group in pieces for piece in group])
      return [np.concatenate([next(done) for _ in group]) for group in pieces]

  def decode(self, ids: Iterable[int]) -> str:
    return self.decode_bytes(ids).decode('utf-8', 'replace')

  def decode_bytes(self, ids: Iterable[int]) -> bytes:
    ids = [int(i) for i in ids]
    try:
      return self._tiktoken.decode_bytes(ids)
    except KeyError:  # an id that no token has, sampled from a vocabulary larger than the tokenizer's
      known = set(self.ranks.values()) | set(self.special_ids.values())
      return b''.join(self._tiktoken.decode_bytes([i]) if i in known else REPLACEMENT for i in ids)

  def save(self, folder: str | os.PathLike) -> None:
    meta = {'kind': 'ranks', 'pattern': self.pattern, 'control': self.special_tokens, 'end_of_text':
    self.end_of_text,
            'fingerprint': self.fingerprint}
    _write(folder, {RANKS_FILE: dump_ranks(self.ranks), META_FILE: _json(meta)})


def dump_ranks(ranks: dict[bytes, int]) -> bytes:
  """tiktoken's rank file: one `base64(token) rank` a line."""
  lines = (base64.b64encode(token) + b' %d\n' % rank for token, rank in sorted(ranks.items(), key=lambda item: item[1]))
  return b''.join(lines)


def load_ranks(path: str | os.PathLike) -> dict[bytes, int]:
  """Reads a tiktoken rank file. (tiktoken's own reader keeps a copy by path and would not see an edited file.)"""
  try:
    content = pathlib.Path(path).read_bytes()
  except OSError as error:
    hint = f'cannot be read ({error.strerror}): name a tiktoken rank file'
    raise ConfigError('tokenizer.path', str(path), hint) from error
  ranks: dict[bytes, int] = {}
  for number, line in enumerate(content.splitlines(), 1):
    if line.strip():
      try:
        token, rank = line.split()
        ranks[base64.b64decode(token, validate=True)] = int(rank)
      except (ValueError, binascii.Error) as error:
        hint = 'not a line of `base64 rank`: use a tiktoken rank file'
        raise ConfigError('tokenizer.path', f'{path}:{number}', hint) from error
  missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
  require(not missing, 'tokenizer.path', str(path), f'not byte-level: bytes {missing[:3]} have no rank')
  require(len(set(ranks.values())) == len(ranks), 'tokenizer.path', str(path), 'two tokens share a rank')
  return ranks


def train(texts: Iterable[str], vocab_size: int, pattern: str, split_digits: bool = False,
          sample_bytes: int = 20_000_000, special_tokens: Sequence[str] = ()) -> RankTokenizer:
  """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019, section 2.2) on the first `sample_bytes` of `texts`.

  The same texts give the same tokenizer. Where they hold fewer merges than asked for, the vocabulary is smaller. The
  last ids are those of the end of text and of the names in `special_tokens`.
  """
  import rustbpe
  pattern, used, special_tokens = pattern_for(pattern, split_digits), 0, (END_OF_TEXT, *special_tokens)
  require(all(special_tokens) and len(set(special_tokens)) == len(special_tokens), 'tokenizer.special_tokens', special_tokens[1:],
          f'names must differ, from each other and from {END_OF_TEXT!r}, which is always there')

  def sample() -> Iterator[str]:
    nonlocal used
    for text in texts:
      for piece in cut(utf8(text).decode(), True):
        if used >= sample_bytes:
          return
        used += len(piece.encode())
        yield piece

  trainer = rustbpe.Tokenizer()
  try:
    trainer.train_from_iterator(sample(), vocab_size=vocab_size - len(special_tokens), pattern=pattern)
  except ValueError as error:
    raise error if isinstance(error, ConfigError) else ConfigError(
      'tokenizer.pattern', pattern, f'not a regular expression: {error}') from error
  require(used > 0, 'data.sources', used, 'no text to train a tokenizer on: name a source with text')
  ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
  return RankTokenizer(ranks, pattern, special_tokens, END_OF_TEXT)


def _json(value: dict) -> bytes:
  return json.dumps(value, indent=1).encode()


def _write(folder: str | os.PathLike, files: dict[str, bytes]) -> None:
  for name, content in files.items():
    fingerprints.write_atomically(pathlib.Path(folder) / name, content)
