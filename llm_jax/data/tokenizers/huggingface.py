"""A Hugging Face `tokenizer.json`, encoded by the `tokenizers` library."""
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax.config.errors import ConfigError, require
from llm_jax.data import fingerprints
from llm_jax.data.tokenizers.files import HUGGING_FACE_FILE, META_FILE, encode_meta, write_files

REPLACEMENT = '\N{REPLACEMENT CHARACTER}'


class HuggingFaceTokenizer:
  """content: the file's bytes. end_of_text: the special token at both ends of every document.

  The library turns a special token's name in the text into its id by default; here it never does. The token that stands
  for what the vocabulary cannot spell is text, whatever the file calls it, unless it is the end of text.
  """

  def __init__(self, content: bytes, end_of_text: str):
    self.content = content
    self.end_of_text = end_of_text
    self._tokenizer, description = _read(content)
    eot = self._tokenizer.token_to_id(end_of_text)
    if eot is None:
      raise ConfigError('tokenizer.end_of_text', end_of_text, 'not in the vocabulary: name its end of text token')
    self.eot: int = eot
    self.special_ids: dict[str, int] = self._special_tokens(_unknown(description['model']))
    require(end_of_text in self.special_ids, 'tokenizer.end_of_text', end_of_text,
            f'not a special token: use one of {sorted(self.special_ids)}')
    self._sorted_special_ids = np.array(sorted(self.special_ids.values()))
    self.vocab_size: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    self.fingerprint: str = fingerprints.of(
      {'kind': 'huggingface', 'end_of_text': end_of_text, 'file': content.decode()})
    # Longest first, so that a name inside another is not cut before it.
    names = sorted(self.special_ids, key=lambda name: (-len(name), name))
    self._special_names = re.compile('|'.join(map(re.escape, names)))
    decoder = description.get('decoder') or {}
    self._alphabet = byte_alphabet() if decoder.get('type') == 'ByteLevel' else None
    self._byte_of_id = self._fallback_bytes() if _falls_back_to_bytes(decoder) else {}

  def encode(self, text: str) -> list[int]:
    return self.encode_batch([text])[0].tolist()

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    # Lone surrogates, which the library refuses, become U+FFFD.
    clean = [text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') for text in texts]
    encoded: list[np.ndarray] = []
    for text, encoding in zip(clean, self._tokenizer.encode_batch_fast(clean, add_special_tokens=False), strict=True):
      ids = np.array(encoding.ids, np.uint32)
      encoded.append(self._spell_special_names(text) if self._has_special(ids) else ids)
    return encoded

  def decode(self, ids: Iterable[int]) -> str:
    return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

  def decode_bytes(self, ids: Iterable[int]) -> bytes:
    """Exact where the file is byte-level, and of tokens for bytes alone; otherwise the UTF-8 of `decode`."""
    ids = [int(i) for i in ids]
    if self._alphabet is not None:
      return b''.join(self._spell(i, self._alphabet) for i in ids)
    if self._byte_of_id.keys() >= set(ids):
      return bytes(self._byte_of_id[i] for i in ids)
    return self.decode(ids).encode()

  def save(self, folder: str | os.PathLike[str]) -> None:
    meta = {'kind': 'huggingface', 'end_of_text': self.end_of_text, 'fingerprint': self.fingerprint}
    write_files(folder, {HUGGING_FACE_FILE: self.content, META_FILE: encode_meta(meta)})

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


def _read(content: bytes) -> tuple[Any, dict[str, Any]]:
  """(the library's tokenizer, the file as JSON)."""
  import tokenizers
  try:
    tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    description = json.loads(content)
  except Exception as error:  # the library raises bare Exception
    raise ConfigError('tokenizer.path', 'tokenizer.json', f'not a Hugging Face tokenizer: {error}') from error
  tokenizer.encode_special_tokens = True  # names of special tokens in text are text
  tokenizer.no_padding()
  tokenizer.no_truncation()
  return tokenizer, description


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
