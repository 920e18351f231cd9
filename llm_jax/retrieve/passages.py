"""Texts, cut into passages."""
import dataclasses
import json
import pathlib
from collections.abc import Iterable

from llm_jax.config.errors import ConfigError, require
from llm_jax.data.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Passage:
  """source: where the text is from.   start: the place of its first token in that text."""
  source: str
  start: int
  text: str


def cut(texts: Iterable[tuple[str, str]], tokenizer: Tokenizer, length: int = 128, overlap: int = 32) -> list[Passage]:
  """Passages of `length` tokens, each of which repeats the last `overlap` tokens of the one before.

  Args:
    texts: (source, text).

  Raises:
    ConfigError: length or overlap cannot be.
  """
  require(length > 0, 'length', length, 'use a positive number of tokens')
  require(0 <= overlap < length, 'overlap', overlap, f'use 0 or more, and fewer than length={length}')
  passages: list[Passage] = []
  for source, text in texts:
    tokens = tokenizer.encode(text)
    start = 0
    while start < len(tokens):
      piece = tokenizer.decode(tokens[start:start + length])
      passages.append(Passage(source, start, piece))
      if start + length >= len(tokens):
        break
      start += length - overlap
  return passages


def read_texts(path: pathlib.Path) -> list[tuple[str, str]]:
  """The texts of JSON lines with a `text`, or a whole file as one text.

  Raises:
    ConfigError: the file cannot be read, or a line has no text.
  """
  try:
    content = path.read_text(encoding='utf-8')
  except (OSError, ValueError) as error:
    raise ConfigError('--texts', str(path), f'cannot be read ({error}): name a UTF-8 file') from error
  if path.suffix != '.jsonl':
    return [(path.name, content)]
  texts: list[tuple[str, str]] = []
  for number, line in enumerate(content.splitlines(), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError as error:
      raise ConfigError(f'{path}:{number}', line, 'is no JSON') from error
    text = row.get('text') if isinstance(row, dict) else None
    if not isinstance(text, str):
      raise ConfigError(f'{path}:{number}', line, "needs a 'text'")
    texts.append((f'{path.name}:{number}', text))
  return texts
