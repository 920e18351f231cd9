"""A Hugging Face `tokenizer.json`, encoded by the `tokenizers` library."""
import contextlib
import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax.config.errors import ConfigError, require
from llm_jax.data import fingerprints
from llm_jax.data.tokenizers.files import HUGGING_FACE_FILE, META_FILE, encode_meta, write_files
from llm_jax.data.tokenizers.panics import refusing_panics
from llm_jax.data.tokenizers.published import (
  CONFIG,
  KEPT,
  MODEL,
  MODEL_ENTRIES,
  is_deciding,
  read_object,
  read_published,
)
from llm_jax.data.tokenizers.rendered import Rendered, Span

WORDS = re.compile(r'[\w\s]+')
REPLACEMENT = '\N{REPLACEMENT CHARACTER}'
# What transformers' clean_up_tokenization does to a decoded text, in order.
CLEAN_UP = ((' .', '.'), (' ?', '?'), (' !', '!'), (' ,', ','), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
            (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))

REFUSING = refusing_panics('tokenizer.path', 'tokenizer.json')  # decorates what calls the library


class HuggingFaceTokenizer:
  """A `tokenizer.json`, with the files that stand beside it in a model's folder.

  content: the file's bytes.
  end_of_text: the special token that ends a document.
  files: those that `published.read_files` gives, which decide ids and chats as they do in transformers. None: the file
    stands alone.

  A document begins with what the file's post-processor puts there, and ends with what it puts there, or with the end of
  text. Where the file stands alone and says nothing of it, the end of text is at both ends, as with our own tokenizers.

  The library turns a special token's name in the text into its id by default; here it never does. The token that stands
  for what the vocabulary cannot spell is text, whatever the file calls it, unless it is the end of text.
  """

  def __init__(self, content: bytes, end_of_text: str, files: Mapping[str, bytes] | None = None):
    self.content = content
    self.end_of_text = end_of_text
    self.files = _deciding(files or {})
    self.kept = {name: content for name, content in (files or {}).items() if name in KEPT}
    published = read_published(content, self.files)
    self.named: dict[str, str] = published.named
    self.chat_templates: dict[str, str] = published.chat_templates
    self._cleans_up = published.cleans_up
    self.is_described: bool = published.is_described
    self._tokenizer = published.tokenizer
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    eot = self._tokenizer.token_to_id(end_of_text)
    if eot is None:
      raise ConfigError('tokenizer.end_of_text', end_of_text, 'not in the vocabulary: name its end of text token')
    self.eot: int = eot
    self.special_ids: dict[str, int] = self._special_tokens(_unknown(published.model))
    require(end_of_text in self.special_ids, 'tokenizer.end_of_text', end_of_text,
            f'not a special token: use one of {sorted(self.special_ids)}')
    self._sorted_special_ids = np.array(sorted(self.special_ids.values()))
    self.vocab_size: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    self.begin, self.end = self._borders()
    self._tokenizer.post_processor = None  # it also moves the places of tokens in a text
    self._tokenizer.encode_special_tokens = True  # names of special tokens in text are text
    self.fingerprint: str = fingerprints.of(self._described())
    # Longest first, so that a name inside another is not cut before it.
    names = sorted(self.special_ids, key=lambda name: (-len(name), name))
    self._special_names = re.compile('|'.join(map(re.escape, names)))
    decoder = published.decoder
    self._alphabet = byte_alphabet() if decoder.get('type') == 'ByteLevel' else None
    self._byte_of_id = self._fallback_bytes() if _falls_back_to_bytes(decoder) else {}

  def encode(self, text: str) -> list[int]:
    return self.encode_batch([text])[0].tolist()

  @REFUSING
  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    # Lone surrogates, which the library refuses, become U+FFFD.
    clean = [text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') for text in texts]
    encoded: list[np.ndarray] = []
    for text, encoding in zip(clean, self._tokenizer.encode_batch_fast(clean, add_special_tokens=False), strict=True):
      ids = np.array(encoding.ids, np.uint32)
      encoded.append(self._spell_special_names(text) if self._has_special(ids) else ids)
    return encoded

  @REFUSING
  def encode_rendered(self, rendered: Rendered) -> tuple[list[int], list[Span]]:
    pieces = rendered.pieces
    ids, spans = self._encode_with_names(pieces[0].text)
    start = len(pieces[0].text)
    for piece in pieces[1:]:
      found, places = self._encode_behind(piece.text, piece.is_guarded)
      ids += found
      spans += [(start + a, start + b) for a, b in places]
      start += len(piece.text)
    return ids, spans

  def added_names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
    added = self._tokenizer.get_added_tokens_decoder().values()
    others = tuple(token.content for token in added if not token.special and not WORDS.fullmatch(token.content))
    return tuple(token.content for token in added if token.special), others

  def decode(self, ids: Iterable[int]) -> str:
    text = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)
    if self._cleans_up:
      for spaced, plain in CLEAN_UP:
        text = text.replace(spaced, plain)
    return text

  def decode_bytes(self, ids: Iterable[int]) -> bytes:
    """Exact where the file is byte-level, and of tokens for bytes alone; otherwise the UTF-8 of `decode`."""
    ids = [int(i) for i in ids]
    if self._alphabet is not None:
      return b''.join(self._spell(i, self._alphabet) for i in ids)
    if self._byte_of_id.keys() >= set(ids):
      return bytes(self._byte_of_id[i] for i in ids)
    return self.decode(ids).encode()

  def save(self, folder: str | os.PathLike[str]) -> None:
    meta = {
      'kind': 'huggingface',
      'end_of_text': self.end_of_text,
      'model': json.loads(self.files.get(MODEL, b'{}')),
      'files': [*self.companions],
      'fingerprint': self.fingerprint,
    }
    write_files(folder, {HUGGING_FACE_FILE: self.content, **self.companions, META_FILE: encode_meta(meta)})

  @property
  def lacks_beginning(self) -> bool:
    """Whether the configuration asks for a beginning of text that the post-processor does not put there."""
    config = read_object(CONFIG, self.files.get(CONFIG, b'{}'))
    bos = self.special_ids.get(self.named.get('bos_token', ''))
    return bool(config.get('add_bos_token')) and bos not in self.begin

  @property
  def companions(self) -> dict[str, bytes]:
    """The files that stand beside the `tokenizer.json`, by name."""
    return {**{name: content for name, content in self.files.items() if name != MODEL}, **self.kept}

  @classmethod
  def load(cls, content: bytes, meta: Mapping[str, Any], read: Callable[[str], bytes]) -> 'HuggingFaceTokenizer':
    """What `save` wrote.   read: gives a file of the folder by name."""
    files = {name: read(name) for name in meta.get('files', ())}
    if meta.get('model'):
      files[MODEL] = json.dumps(meta['model']).encode()
    return cls(content, meta['end_of_text'], files)

  def _described(self) -> dict[str, Any]:
    """All that decides ids; of a file that stands alone what was always asked."""
    described: dict[str, Any] = {'kind': 'huggingface', 'end_of_text': self.end_of_text, 'file': self.content.decode()}
    if (self.begin, self.end) != ((self.eot,), (self.eot,)):
      described |= {'begin': list(self.begin), 'end': list(self.end)}
    if self.files:
      described['files'] = {name: content.decode() for name, content in sorted(self.files.items())}
    return described

  @REFUSING
  def _borders(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and behind every document."""
    try:
      encoding = self._tokenizer.encode('a')
    except Exception as error:  # the library raises bare Exception
      raise ConfigError('tokenizer.path', 'tokenizer.json', f'encodes no text ({error}): correct the file, or the '
                        'tokenizer_class in tokenizer_config.json') from error
    is_added = encoding.special_tokens_mask
    first = is_added.index(0) if 0 in is_added else len(is_added)
    begin = tuple(encoding.ids[:first])
    end = tuple(i for i, added in zip(encoding.ids[first:], is_added[first:], strict=True) if added)
    says_nothing = not (self.is_described or begin or end)
    return (self.eot,) if says_nothing else begin, end or (self.eot,)

  @contextlib.contextmanager
  def _reading_names(self) -> Iterator[None]:
    """Names of special tokens in text are these tokens, as they are in the library."""
    self._tokenizer.encode_special_tokens = False
    try:
      yield
    finally:
      self._tokenizer.encode_special_tokens = True

  def _encode_with_names(self, text: str) -> tuple[list[int], list[Span]]:
    with self._reading_names():
      encoding = self._tokenizer.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets

  def _encode_behind(self, text: str, is_guarded: bool) -> tuple[list[int], list[Span]]:
    """Ids of a text that stands behind another, where SentencePiece's mark of a beginning does not belong; as
    transformers encodes a chat in which somebody wrote the name of a control token.

    is_guarded: the text is such a name, and no added token is read in it.
    """
    if is_guarded:
      ids = self._without_newline(self._encode_model('\n' + text)) or self._encode_model(text)
      require(self._tokenizer.token_to_id(text) not in ids, 'text', text,
              'this tokenizer.json turns it into a special token: take it out of the conversation')
      return ids, [(0, len(text))] * len(ids)
    ids, spans = self._encode_with_names('\n' + text)
    kept = self._without_newline(ids)
    if kept is None:
      return self._encode_with_names(text)
    return kept, [(max(a - 1, 0), b - 1) for a, b in spans[len(ids) - len(kept):]]

  def _without_newline(self, ids: list[int]) -> list[int] | None:
    """What follows the ids of a line break; None where they do not stand apart."""
    if ids[:len(self._newline)] == self._newline:
      return ids[len(self._newline):]
    return None

  @functools.cached_property
  def _newline(self) -> list[int]:
    return self._encode_with_names('\n')[0]

  def _encode_model(self, text: str) -> list[int]:
    """Ids of a text in which no added token is looked for."""
    tokenizer = self._tokenizer
    normalizer, pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    text = text if normalizer is None else normalizer.normalize_str(text)
    parts = [text] if pre_tokenizer is None else [part for part, _ in pre_tokenizer.pre_tokenize_str(text)]
    ids: list[int] = []
    for part in parts:
      ids += [token.id for token in tokenizer.model.tokenize(part)]
    return ids

  def _special_tokens(self, unknown: str | None) -> dict[str, int]:
    """Ids by name.   unknown: the token for what cannot be spelt."""
    special: dict[str, int] = {}
    for i, token in self._tokenizer.get_added_tokens_decoder().items():
      if token.special and (token.content != unknown or i == self.eot):
        special[token.content] = i
    return special

  def _has_special(self, ids: np.ndarray) -> bool:
    return bool(np.isin(ids, self._sorted_special_ids).any())

  def _spell_special_names(self, text: str) -> np.ndarray:
    """For vocabularies that have a special token's name as ordinary text too: it is encoded in two halves."""
    cuts = [(found.start() + found.end()) // 2 for found in self._special_names.finditer(text)]
    ids: list[int] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
      ids += self._tokenizer.encode(text[start:end], add_special_tokens=False).ids
    encoded = np.array(ids, np.uint32)
    if self._has_special(encoded):
      raise ConfigError('text', text[:80], 'this tokenizer.json turns some of it into a special token: use another '
                        'tokenizer, or, where its end_of_text is its unknown token, another end_of_text')
    return encoded

  def _spell(self, i: int, alphabet: Mapping[str, int]) -> bytes:
    """The bytes of a byte-level token; an added token is kept as plain text."""
    token = self._tokenizer.id_to_token(i) or REPLACEMENT
    if all(character in alphabet for character in token):
      return bytes(alphabet[character] for character in token)
    return token.encode()

  def _fallback_bytes(self) -> dict[int, int]:
    """SentencePiece's tokens for bytes: several of them spell a character, and `decode` knows none of them alone."""
    bytes_by_id: dict[int, int] = {}
    for byte in range(256):
      i = self._tokenizer.token_to_id(f'<0x{byte:02X}>')
      if i is not None:
        bytes_by_id[i] = byte
    return bytes_by_id


def _deciding(files: Mapping[str, bytes]) -> dict[str, bytes]:
  """Of a folder's files those that decide ids and chats; of the model's configuration what does."""
  found = {name: content for name, content in files.items() if is_deciding(name)}
  if MODEL in files:
    model = read_object(MODEL, files[MODEL])
    entries = {key: model[key] for key in MODEL_ENTRIES if model.get(key) is not None}
    found[MODEL] = json.dumps(entries).encode()
  return found


def _unknown(model: dict[str, Any]) -> str | None:
  """The token for what a tokenizer.json's model cannot spell, or None."""
  if model.get('unk_id') is not None:  # Unigram
    return model['vocab'][model['unk_id']][0]
  return model.get('unk_token')


def _falls_back_to_bytes(decoder: dict[str, Any]) -> bool:
  parts = (decoder, *decoder.get('decoders', ()))
  return any(part.get('type') == 'ByteFallback' for part in parts)


def byte_alphabet() -> dict[str, int]:
  """GPT-2's printable character for each byte: printable Latin-1 stands for itself, the others for U+0100 and on."""
  printable = [*range(ord('!'), ord('~') + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
  others = [byte for byte in range(256) if byte not in printable]
  alphabet = {chr(byte): byte for byte in printable}
  for i, byte in enumerate(others):
    alphabet[chr(256 + i)] = byte
  return alphabet
