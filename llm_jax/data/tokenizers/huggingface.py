"""A Hugging Face `tokenizer.json`, encoded by the `tokenizers` library."""
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from llm_jax.config.errors import ConfigError, require
from llm_jax.data import fingerprints


class HuggingFaceTokenizer:
  """content: the file's bytes. end_of_text: the special token at both ends of every document.

  The library turns a special token's name in the text into its id by default; here it never does. The token that stands
  for what the vocabulary cannot spell is text, whatever the file calls it, unless it is the end of text.
  """

  def __init__(self, content: bytes, end_of_text: str):
    import tokenizers
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
      description = json.loads(content)
    except Exception as error:  # the library raises bare Exception
      raise ConfigError('tokenizer.path', 'tokenizer.json', f'not a Hugging Face tokenizer: {error}') from error
    self._tokenizer.encode_special_tokens = True  # names of special tokens in text are text
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    self.content, self.end_of_text = content, end_of_text
    eot = self._tokenizer.token_to_id(end_of_text)
    require(eot is not None, 'tokenizer.end_of_text', end_of_text, 'not in the vocabulary: name its end of text token')
    unknown = _unknown(description['model'])
    special = {token.content: i for i, token in self._tokenizer.get_added_tokens_decoder().items()
               if token.special and (token.content != unknown or i == eot)}
    require(end_of_text in special, 'tokenizer.end_of_text', end_of_text,
            f'not a special token: use one of {sorted(special)}')
    self.eot, self.special_ids, self._special_ids = eot, special, np.array(sorted(special.values()))
    self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    self.fingerprint = fingerprints.of({'kind': 'huggingface', 'end_of_text': end_of_text, 'file': content.decode()})
    # Longest first, so that a name inside another is not cut before it.
    names = sorted(special, key=lambda name: (-len(name), name))
    self._control_names = re.compile('|'.join(map(re.escape, names)))
    decoder = description.get('decoder') or {}
    self._bytes_of = byte_alphabet() if decoder.get('type') == 'ByteLevel' else None
    # SentencePiece's tokens for bytes: several of them spell a character, and `decode` knows none of them alone.
    falls_back = any(part.get('type') == 'ByteFallback' for part in (decoder, *decoder.get('decoders', ())))
    self._byte_ids = {self._tokenizer.token_to_id(f'<0x{i:02X}>'): i for i in range(256)} if falls_back else {}

  def encode(self, text: str) -> list[int]:
    return self.encode_batch([text])[0].tolist()

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    texts = [text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') for text in texts]
    encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ids = [np.array(encoding.ids, np.uint32) for encoding in encodings]
    return [self._without_control(text) if np.isin(found, self._special_ids).any() else found
            for text, found in zip(texts, ids, strict=True)]

  def _without_control(self, text: str) -> np.ndarray:
    """For vocabularies that spell a special token as ordinary text too: its name is encoded in two halves."""
    cuts = [(found.start() + found.end()) // 2 for found in self._control_names.finditer(text)]
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    ids = [i for part in parts for i in self._tokenizer.encode(part, add_special_tokens=False).ids]
    if np.isin(ids, self._special_ids).any():
      raise ConfigError('text', text[:80], 'this tokenizer.json turns some of it into a special token: use another '
                        'tokenizer, or, where its end_of_text is its unknown token, another end_of_text')
    return np.array(ids, np.uint32)

  def decode(self, ids: Iterable[int]) -> str:
    return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

  def decode_bytes(self, ids: Iterable[int]) -> bytes:
    """Exact where the file is byte-level, and of tokens for bytes alone; otherwise the UTF-8 of `decode`."""
    ids = list(map(int, ids))
    if self._bytes_of is None:
      return bytes(map(self._byte_ids.get, ids)) if self._byte_ids.keys() >= set(ids) else self.decode(ids).encode()
    tokens = [self._tokenizer.id_to_token(int(i)) or '\N{REPLACEMENT CHARACTER}' for i in ids]
    return b''.join(self._spelt(token) for token in tokens)

  def _spelt(self, token: str) -> bytes:
    spelling = [self._bytes_of.get(character) for character in token]
    return token.encode() if None in spelling else bytes(spelling)  # None: an added token, kept as plain text

  def save(self, folder: str | os.PathLike) -> None:
    meta = {'kind': 'huggingface', 'end_of_text': self.end_of_text, 'fingerprint': self.fingerprint}
    folder = pathlib.Path(folder)
    fingerprints.write_atomically(folder / 'tokenizer.json', self.content)
    fingerprints.write_atomically(folder / 'llm_jax_tokenizer.json', json.dumps(meta, indent=1).encode())


def _unknown(model: dict) -> str | None:
  """The token for what a tokenizer.json's model cannot spell, or None."""
  if model.get('unk_id') is not None:  # Unigram
    return model['vocab'][model['unk_id']][0]
  return model.get('unk_token')


def byte_alphabet() -> dict[str, int]:
  """GPT-2's printable character for each byte: printable Latin-1 stands for itself, the others for U+0100 and on."""
  printable = [*range(ord('!'), ord('~') + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
  others = [byte for byte in range(256) if byte not in printable]
  return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
