"""Texts with a class: read, checked, and written out with the special tokens around them.

A text is `start text extract`, a pair `start first delimiter second extract`; the class is read at the extract mark
(Radford et al. 2018, GPT-1, section 3.3). A token store holds the class behind it, as the document's last token.
"""
import ast
import functools
import pathlib
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_jax.config import experiment as config
from llm_jax.config.errors import require
from llm_jax.data.sources import formats
from llm_jax.data.tokenizers.base import Tokenizer

FORMAT = 1  # raise it when the same rows are stored in another way
SHORTEST, LONGEST = 80, 1_000  # characters of a function of the standard library that is an example


class Example(NamedTuple):
  """A text, or the two of a pair, and the place of its class among the source's labels."""
  texts: tuple[str, ...]
  label: int

  @property
  def text(self) -> str:
    """All of it, one text a line."""
    return '\n'.join(self.texts)


# ---------------------------------------------------------------------------------------------- reading
def read_example(line: bytes, where: str, source: config.LabelledJsonl) -> Example:
  """One line of JSONL. Raises ConfigError naming the row."""
  row = formats.json_object(line, where)
  names = (source.text,) if source.pair is None else (source.text, source.pair)
  for name in (*names, source.label):
    if name not in row:
      raise formats.bad(where, f'no field {name!r}', f'found {sorted(row)[:8]}; correct the line, or name the field')
  for name in names:
    if not isinstance(row[name], str):
      raise formats.bad(where, f'field {name!r} is not text', f'a {type(row[name]).__name__}; correct the line')
    formats.check_unicode(row[name], where)
    if not row[name].strip():
      raise formats.bad(where, f'field {name!r} is empty', 'leave the line out')
  return Example(tuple(row[name] for name in names), _place(row[source.label], where, source))


def _place(label: Any, where: str, source: config.LabelledJsonl) -> int:
  number = isinstance(label, int) and not isinstance(label, bool)
  if str(label) not in source.labels or not (number or isinstance(label, str)):
    raise formats.bad(where, f'{source.label} {label!r} is unknown',
                      f'labels holds {source.labels[:20]}; correct the line, or add it')
  return source.labels.index(str(label))


def library_functions(files: dict[str, pathlib.Path], source: config.StandardLibraryFunctions
                      ) -> Iterator[tuple[str, Callable[[], Example]]]:
  """(file, read) of the functions and methods in the packages that are the labels, of equal ones the first."""
  found = set()
  for name, path in files.items():
    package, *inside = name.split('/')
    if inside and package in source.labels:
      for text in _functions(path):
        if text not in found:
          found.add(text)
          yield name, functools.partial(Example, (text,), source.labels.index(package))


def _functions(path: pathlib.Path) -> Iterator[str]:
  """Sources, without what is indented in all lines. A file that is not Python has none."""
  try:
    with warnings.catch_warnings(action='ignore'):
      text = path.read_text(encoding='utf-8')
      nodes = list(reversed(ast.parse(text).body))
  except (SyntaxError, ValueError):
    return
  lines = text.split('\n')
  while nodes:
    node = nodes.pop()
    if isinstance(node, ast.ClassDef):
      nodes += reversed(node.body)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      function = textwrap.dedent('\n'.join(lines[node.lineno - 1:node.end_lineno]))
      if SHORTEST <= len(function) <= LONGEST:
        yield function


# ---------------------------------------------------------------------------------------------- ids
def check_special_tokens(source: config.Labelled, tokenizer: Tokenizer) -> None:
  """Refuses special tokens that the tokenizer lacks."""
  missing = tuple(mark for mark in source.special_tokens if mark and mark not in tokenizer.special_ids)
  require(not missing, 'special_tokens', missing, f'the tokenizer has {tuple(tokenizer.special_ids)}: name some of these, or '
          "leave '' for its end of text")


def encode(examples: Sequence[Example], source: config.Labelled, tokenizer: Tokenizer
           ) -> list[tuple[np.ndarray, np.ndarray]]:
  """(ids, counts) of each: the text between its special tokens, then the class; counts are 1 for the tokens of the
  text."""
  start, delimiter, extract = (tokenizer.special_ids[mark] if mark else tokenizer.eot for mark in source.special_tokens)
  encoded = iter(tokenizer.encode_batch([text for example in examples for text in example.texts]))
  documents = []
  for texts, label in examples:
    ids, counts = [], []
    for mark, text in zip((start, delimiter), (next(encoded) for _ in texts), strict=False):
      ids += [[mark], text]
      counts += [[0], np.ones(len(text))]
    documents.append((np.concatenate([*ids, [extract, label]]).astype(np.int32),
                      np.concatenate([*counts, [0, 0]]).astype(np.uint8)))
  return documents
